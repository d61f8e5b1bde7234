"""A prediction against a measurement that is given, by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from slim_det.core.errors import LatencyError
from slim_det.deploy.latency import Latency
from slim_det.planning.profile.check import CheckRow, compare
from slim_det.planning.profile.shapes import ConvShape
from slim_det.planning.profile.table import Entry, LatencyTable, this_machine

ONE, TWO = ConvShape(4, 4, 8, 8, 1), ConvShape(4, 8, 8, 8, 1)
TABLE = LatencyTable(
    this_machine(3), (Entry(ONE, 1.0, 1.0, 1.0), Entry(TWO, 2.0, 2.0, 2.0)), other_ms=5.0
)


def test_predictions_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[list[str], int, int]] = []

    def measured(folders: Sequence[Path], runs: int, threads: int) -> list[Latency]:
        calls.append(([str(folder) for folder in folders], runs, threads))
        return [Latency("", ms, ms - 1, ms + 1, 1.0) for ms in (10.0, 8.0)]

    monkeypatch.setattr("slim_det.planning.profile.check.compare_latency", measured)
    models = {"uncut": (Path("a"), [ONE, TWO, TWO]), "cut": (Path("b"), [ONE])}

    rows = compare(TABLE, models, runs=7)

    assert calls == [(["a", "b"], 7, 3)]
    assert rows == [
        CheckRow("uncut", 5.0, 10.0, 10.0, 9.0, 11.0, 0.0),
        CheckRow("cut", 1.0, 6.0, 8.0, 7.0, 9.0, -0.25),
    ]
    assert [row.passed for row in rows] == [True, False]


def test_what_the_table_does_not_reach_is_found_before_anything_is_timed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("slim_det.planning.profile.check.compare_latency", pytest.fail)
    with pytest.raises(LatencyError, match="does not cover 1x1 conv 9->9"):
        compare(TABLE, {"wide": (Path("a"), [ConvShape(9, 9, 8, 8, 1)])})


@pytest.mark.parametrize(
    ("error", "passed"), [(0.15, True), (-0.15, True), (0.151, False), (-0.151, False)]
)
def test_the_target_is_fifteen_percent(error: float, passed: bool) -> None:
    assert CheckRow("m", 1.0, 1.0, 1.0, 1.0, 1.0, error).passed is passed
