"""The tolerance of sums goes by the largest of them."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support import SUM_TOLERANCE, assert_same_sums


def test_nothing_and_numbers() -> None:
    assert_same_sums([], np.zeros(0))
    assert_same_sums(0.0, 0.0)
    assert_same_sums(np.float32(0.1), 0.1)


@pytest.mark.parametrize("place", [0, 1])
def test_rounding_has_the_size_of_the_largest_value(place: int) -> None:
    """Of 8 and 1e-5, the second may be twice as large: its terms may have been 8 and -8."""
    expected = np.array([-8.0, 1e-5])
    for share, passes in ((0.9, True), (1.1, False)):
        found = expected.copy()
        found[place] += share * 8.0 * SUM_TOLERANCE
        if passes:
            assert_same_sums(found, expected)
            continue
        with pytest.raises(AssertionError, match="layer: 3.52e-05 apart, at most 3.2e-05 allowed"):
            assert_same_sums(found, expected, "layer")


@pytest.mark.parametrize("found", [[np.nan, 1.0], [np.inf, 1.0], [1.0], [[1.0, 1.0]], 1.0])
def test_what_is_never_the_same(found: object) -> None:
    with pytest.raises(AssertionError):
        assert_same_sums(found, [1.0, 1.0])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nothing_is_the_same_as_what_is_no_number(value: float) -> None:
    for found in ([1.0, 2.0], [1.0, value]):
        with pytest.raises(AssertionError):
            assert_same_sums(found, [1.0, value])
