"""Loss curves on values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slim_det.planning.budget.curves import losses_at, penalties_of, ratio_at_loss, retained

CURVE = {0.1: 0.01, 0.2: 0.03, 0.3: 0.07, 0.4: 0.15}


@pytest.mark.parametrize(
    ("losses", "threshold", "ratio"),
    [
        ({}, 0.1, 0.0),
        (CURVE, 0.2, 0.4),  # all within: the largest measured one
        (CURVE, 0.15, 0.4),  # on the boundary
        (CURVE, 0.05, 0.25),  # half-way from 0.03 to 0.07
        (CURVE, 0.03, 0.2),
        (CURVE, 0.005, 0.05),  # below the first measured one: towards (0, 0)
        ({0.1: 0.2, 0.2: 0.01, 0.3: 0.05}, 0.03, 0.25),  # scanned from the largest
        ({0.1: -0.02, 0.2: 0.02}, 0.01, 0.175),
    ],
)
def test_ratio_at_loss(losses: dict[float, float], threshold: float, ratio: float) -> None:
    assert ratio_at_loss(losses, threshold) == pytest.approx(ratio, abs=1e-12)


@given(
    st.dictionaries(st.sampled_from([0.1, 0.2, 0.3, 0.5, 0.7, 0.9]), st.floats(-0.2, 1.0)),
    st.floats(0.0, 1.0),
    st.floats(0.0, 1.0),
)
def test_more_loss_allows_no_less_cutting(
    losses: dict[float, float], one: float, other: float
) -> None:
    low, high = sorted([one, other])
    assert ratio_at_loss(losses, low) <= ratio_at_loss(losses, high) + 1e-9


def test_losses_between_measurements() -> None:
    """16 units: 0.25 removes 4 and 0.5 removes 8."""
    losses = losses_at({0.25: 0.1, 0.5: 0.4}, 16, [0, 1, 2, 4, 6, 8])
    assert losses.tolist() == pytest.approx([0.0, 0.025, 0.05, 0.1, 0.25, 0.4], abs=1e-12)


def test_nothing_removed_loses_nothing() -> None:
    """Two units: a ratio of 0.1 removes none, whatever was measured."""
    assert losses_at({0.1: 0.02, 0.5: 0.3}, 2, [0, 1]).tolist() == [0.0, 0.3]
    assert losses_at({}, 8, [0]).tolist() == [0.0]


def test_penalties_multiply_what_is_left() -> None:
    penalties = penalties_of(np.array([0.0, 0.5, 0.2, -0.25]))
    assert penalties[0] == 0.0
    assert retained(penalties.sum()) == pytest.approx(0.5 * 0.8 * 1.25, rel=1e-12)


def test_total_loss_is_large_and_finite() -> None:
    assert penalties_of(np.array([1.0, 1.5])).tolist() == pytest.approx([math.log(1e6)] * 2)
