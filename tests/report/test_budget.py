"""What is said about candidates and about points that were not measured."""

from __future__ import annotations

from dataclasses import replace

import pytest

from slim_det.planning.budget.active import Coverage
from slim_det.planning.budget.candidates import Candidate
from slim_det.planning.budget.judge import Judged
from slim_det.planning.budget.search import Solution
from slim_det.planning.budget.targets import Target
from slim_det.report.budget import Provenance, Report, candidate_line

SOURCE = Provenance("s.json", "a" * 64, "coco_ap", 0.4, "elimination")


def judged(name: str, retained: float, macs: float, ap: float) -> Judged:
    solution = Solution({"a": 4}, retained, {"macs": 8.0}, {"macs": macs}, "macs", (), (), "hand")
    return Judged(Candidate(name, solution), {"a": 0.5}, ap)


SOLVER, UNIFORM = judged("solver", 0.75, 4.0, 0.25), judged("uniform", 0.5, 3.0, 0.3125)


@pytest.fixture
def report() -> Report:
    """The second of two candidates was the better one."""
    best = UNIFORM.candidate.solution
    return Report(
        Target("macs", 0.5), best, {"a": 0.5}, 1, SOURCE, 0.3125, "least_squares",
        (SOLVER, UNIFORM), Coverage(64, 162, 0.5, 0.8),
    )  # fmt: skip


def test_candidates_and_points_in_the_slim_file(report: Report) -> None:
    text = report.slim_file()
    assert (
        "# best of 2 candidates, judged after repair on EvalDataset: solver 0.2500, uniform 0.3125"
        in text
    )
    assert "# measured 64 of 162 points; " in text
    assert "at least 0.2000 for this plan and at most 0.3200 for the best one" in text
    assert "judged after the cut on EvalDataset" in replace(report, repair=None).slim_file()
    for line in ("best of 2 candidates", "measured 64 of 162 points"):
        assert line in str(report)


def test_figures(report: Report) -> None:
    figures = report.as_dict()
    assert [
        (one["name"], one["measured_ap"], one["macs_after"]) for one in figures["candidates"]
    ] == [
        ("solver", 0.25, 4),
        ("uniform", 0.3125, 3),
    ]
    assert figures["candidates"][0]["predicted_ap"] == pytest.approx(0.3)
    assert figures["points"] == {
        "measured": 64, "of": 162, "retained_low": 0.5, "retained_high": 0.8,
    }  # fmt: skip


def test_one_plan_from_a_file(report: Report) -> None:
    """Nothing is said about candidates or points; without a baseline, shares are percent."""
    plain = replace(report, candidates=(SOLVER,), coverage=None)
    assert "candidates" not in plain.slim_file() and "points" not in plain.slim_file()
    assert plain.as_dict()["points"] is None
    unknown = replace(report, provenance=replace(SOURCE, baseline=None))
    assert "at least 50.00% for this plan and at most 80.00%" in str(unknown)


def test_line_of_a_candidate() -> None:
    assert candidate_line(SOLVER, SOURCE) == (
        "candidate solver: coco_ap predicted 0.3000, measured 0.2500"
    )
