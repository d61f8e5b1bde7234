"""Maxima and histograms of activations, against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slim_det.compress.quantize.statistics import BINS, Statistics

FLOATS = st.floats(-1e6, 1e6, width=32)
IMAGES = st.lists(st.lists(FLOATS, min_size=1, max_size=30), min_size=1, max_size=5)


def collected(*images: list[float]) -> Statistics:
    found = Statistics()
    for image in images:
        found.add(np.array([image], "float32"))
    return found


def test_nothing() -> None:
    empty = Statistics()
    assert (empty.maxima, empty.limit, empty.largest, empty.count) == ([], 0.0, 0.0, 0)
    empty.add(np.zeros((0, 3, 2, 2), "float32"))
    empty.add(np.zeros((1, 0), "float32"))
    assert empty.maxima == [] and empty.count == 0


def test_only_zeros_and_then_a_value() -> None:
    found = collected([0.0, -0.0, 0.0])
    assert (found.maxima, found.limit, found.count) == ([0.0], 0.0, 3)
    found.add(np.array([[3.0]], "float32"))
    assert found.limit == 4.0 and found.width == 4.0 / BINS
    assert found.histogram[0] == 3 and found.histogram[3 * BINS // 4] == 1


def test_sign_is_dropped_and_images_are_told_apart() -> None:
    found = Statistics()
    found.add(np.array([[1.5, -2.5], [0.5, 0.25]], "float32"))
    assert found.maxima == [2.5, 0.5] and found.largest == 2.5
    assert found.limit == 4.0
    assert [int(i) for i in np.flatnonzero(found.histogram)] == [256, 512, 1536, 2560]


@pytest.mark.parametrize("value", [1.0, 2.0, 1024.0])
def test_a_power_of_two_is_below_the_limit(value: float) -> None:
    """The last bin does not hold its upper end."""
    found = collected([value])
    assert found.limit == 2 * value and found.histogram[BINS // 2] == 1


def test_the_limit_doubles_and_bins_are_added() -> None:
    found = collected([0.999], [7.9])
    assert found.limit == 8.0 and found.count == 2
    assert found.histogram[int(0.999 / 8 * BINS)] == 1
    assert found.histogram[int(np.float32(7.9) / 8 * BINS)] == 1


def test_tiny_and_huge_values() -> None:
    found = collected([1e-42], [3e38])
    assert found.largest == pytest.approx(3e38) and found.count == 2
    assert found.histogram[0] == 1 and found.histogram[BINS // 2 :].sum() == 1
    assert collected([1e-42]).histogram[0] == 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite(value: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        collected([1.0, value])


@settings(deadline=None, max_examples=60)
@given(images=IMAGES)
def test_same_as_numpy_over_everything_at_once(images: list[list[float]]) -> None:
    found = collected(*images)
    values = np.abs(np.array(sum(images, []), "float32")).astype(np.float64)
    assert found.maxima == [float(np.abs(np.float32(image)).max()) for image in images]
    assert found.count == values.size
    if found.limit:
        assert found.limit / 2 <= max(values.max(), 2.0**-41) < found.limit
        expected, _ = np.histogram(values, BINS, (0.0, found.limit))
        assert np.array_equal(found.histogram, expected)
