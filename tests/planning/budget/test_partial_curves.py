"""Curves with few measured points: estimates, bounds, and what is still missing."""

from __future__ import annotations

import pytest

from slim_det.planning.budget.partial_curves import PartialCurve

TENTHS = tuple(tenth / 10 for tenth in range(1, 10))


def curve(measured: dict[float, float], units: int = 100) -> PartialCurve:
    return PartialCurve(units, TENTHS, measured)


def values(row: dict[float, float]) -> list[float]:
    """In the order of the grid, which the row must have."""
    assert tuple(row) == TENTHS
    return list(row.values())


def test_estimates_are_lines() -> None:
    """From 0 to the first point, between points, and on behind the last one, up to 1."""
    estimated = values(curve({0.3: 0.03, 0.5: 0.33}).estimated())
    assert estimated == pytest.approx([0.01, 0.02, 0.03, 0.18, 0.33, 0.48, 0.63, 0.78, 0.93])
    assert values(curve({0.5: 0.8}).estimated())[5:] == pytest.approx([0.96, 1.0, 1.0, 1.0])


def test_estimates_do_not_fall_behind_a_gain() -> None:
    assert values(curve({0.5: -0.1}).estimated())[4:] == pytest.approx([-0.1] * 5)


def test_bounds_are_measured_neighbours() -> None:
    one = curve({0.3: 0.1, 0.6: 0.4})
    assert values(one.least()) == [0.0, 0.0, 0.1, 0.1, 0.1, 0.4, 0.4, 0.4, 0.4]
    assert values(one.most()) == [0.1, 0.1, 0.1, 0.4, 0.4, 0.4, 1.0, 1.0, 1.0]


def test_bounds_between_neighbours_that_fall() -> None:
    """A gain at 0.6 contradicts the assumption: both neighbours are bounds, in their order."""
    one = curve({0.3: 0.1, 0.6: -0.2})
    assert values(one.least())[3:5] == [-0.2, -0.2] and values(one.most())[3:5] == [0.1, 0.1]


def test_nothing_is_known() -> None:
    one = curve({})
    assert values(one.estimated()) == [0.0] * 9
    assert values(one.least()) == [0.0] * 9 and values(one.most()) == [1.0] * 9
    assert one.unmeasured_middle() == [0.5]
    assert curve({0.2: 0.1}).unmeasured_middle() == []


@pytest.mark.parametrize(
    ("removed", "missing"),
    [
        (0, [0.1]),
        (40, [0.3, 0.4]),  # 0.5 is measured
        (50, [0.4, 0.6]),
        (55, [0.6]),
        (45, [0.4]),
        (90, [0.8, 0.9]),
        (95, [0.9]),
    ],
)
def test_what_is_missing_around_a_number(removed: int, missing: list[float]) -> None:
    assert curve({0.5: 0.1}).unmeasured_around(removed) == missing


def test_few_units() -> None:
    """Three of them: 0.1 removes none, 0.2 to 0.4 one (rounded), 0.5 to 0.8 two, 0.9 all but one.

    A ratio is not measured if it removes as many as a measured one.
    """
    one = curve({0.4: 0.1}, units=3)
    counts = [0, 1, 1, 1, 2, 2, 2, 2, 2]
    assert [c for c in one._counts().tolist()] == counts
    assert one.unmeasured_around(1) == [0.5]
    assert one.unmeasured_around(2) == [0.5]
    assert values(one.estimated()) == pytest.approx([0.0, 0.1, 0.1, 0.1, *[0.2] * 5])
    assert curve({}, units=1).unmeasured_middle() == []
