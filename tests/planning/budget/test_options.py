"""Which widths a group may have, and ratios that lead to them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slim_det.compress.prune.groups import Group
from slim_det.compress.prune.ratios import units_removed
from slim_det.planning.budget.options import (
    Limits,
    allowed_removals,
    coarse_options,
    fine_options,
    largest_within,
    ratio_for,
)

LOSSES = {0.25: 0.1, 0.5: 0.2}


def group(units: int, channels: int = 0) -> Group:
    return Group("layer", (), np.arange(units), channels or units)


@pytest.mark.parametrize(
    ("limits", "removals"),
    [
        (Limits(), [0, 1, 2, 3, 4, 5, 6, 7, 8]),  # nothing beyond the largest measured ratio
        (Limits(align=4), [0, 4, 8]),
        (Limits(max_ratio=0.25), [0, 1, 2, 3, 4]),
        (Limits(min_channels=14), [0, 1, 2]),
        (Limits(min_channels=17), [0]),
        (Limits(align=32), [0]),
    ],
)
def test_allowed(limits: Limits, removals: list[int]) -> None:
    assert allowed_removals(group(16), LOSSES, limits) == removals


def test_nothing_measured_allows_nothing() -> None:
    assert allowed_removals(group(16), {}, Limits()) == [0]


def test_width_that_is_no_multiple_may_stay_unpruned() -> None:
    assert allowed_removals(group(18), LOSSES, Limits(align=8)) == [0, 2]


def test_channels_are_counted_in_the_widest_layer() -> None:
    """Two channels a unit: 8 channels are 4 units."""
    limits = Limits(min_channels=8)
    assert allowed_removals(group(6, channels=12), {0.9: 0.1}, limits) == [0, 1, 2]


def test_coarse_options_hold_the_measured_ones_and_close_gaps() -> None:
    allowed = list(range(91))
    assert coarse_options(allowed, 100, [0.1, 0.15]) == [0, 5, 10, 15]
    assert coarse_options(allowed, 100, [0.3, 0.9]) == list(range(0, 91, 5))
    assert coarse_options([0], 100, [0.3]) == [0]
    assert coarse_options([0, 4, 8], 16, [0.25, 0.5]) == [0, 4, 8]


def test_fine_options_lie_between_neighbours() -> None:
    fine = fine_options(list(range(41)), [0, 10, 20, 30], 10)
    assert fine[0] == 0 and fine[-1] == 20 and 10 in fine and len(fine) <= 20
    assert fine_options(list(range(9)), [0, 4, 8], 8) == [4, 5, 6, 7, 8]
    assert fine_options([0], [0], 0) == [0]


def test_largest_within() -> None:
    assert largest_within([0, 4, 8], 7) == 4 and largest_within([0, 4, 8], 3) == 0


@given(st.integers(2, 2048), st.sampled_from([1, 2, 8, 16]), st.data())
def test_ratio_removes_exactly(units: int, align: int, data: st.DataObject) -> None:
    removals = [r for r in range(1, units) if (units - r) % align == 0]
    if not removals:
        return
    removed = data.draw(st.sampled_from(removals))
    ratio = ratio_for(units, removed, align)
    assert 0.0 < ratio < 1.0
    assert units_removed(units, ratio, align) == removed
    assert units_removed(units, float(repr(ratio)), align) == removed


def test_ratio_prefers_what_was_measured() -> None:
    assert ratio_for(64, 19, 1, [0.1, 0.3]) == 0.3  # 19.2 channels
    assert ratio_for(64, 20, 1, [0.1, 0.3]) == 0.31
