"""`slim-det ratios --active` and `--candidates` as a user runs them."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from slim_det.planning.sensitivity.analysis import Analysis
from slim_det.planning.sensitivity.result import read_result
from tests.commands import Outcome, done, files_below, lines_of
from tests.forks import Forks
from tests.trained import Detector

POINTS = 162


def active(detector: Detector, folder: Path) -> tuple[Any, ...]:
    """A command that measures for a tenth of the MACs, and does not evaluate the plan."""
    return (
        *("ratios", "-c", detector.config, "--active", "--macs", 0.1, "--no_measure"),
        *("--sensitivity", folder / "active.json", "--output", folder / "plan.yml"),
        *("--json", folder / "plan.json"),
    )


@pytest.fixture(scope="module")
def undisturbed(detector: Detector, forks: Forks) -> Path:
    """The folder of a run that nothing disturbed."""
    folder = forks.folder / "undisturbed"
    folder.mkdir()
    assert forks.run(*active(detector, folder)) == 0, forks.error()
    return folder


def test_only_what_the_budget_needs(undisturbed: Path) -> None:
    """The file holds fewer points than the grid has; the plan, the slim file and the range."""
    result = read_result(undisturbed / "active.json")
    figures = json.loads((undisturbed / "plan.json").read_text())
    measured = sum(len(row) for row in result.groups.values())
    assert figures["points"]["measured"] == measured < figures["points"]["of"] == POINTS
    assert not result.complete and len(result.groups) == 18
    assert all(row for row in result.groups.values())
    predicted = 1.0 - figures["predicted_loss"]
    assert figures["points"]["retained_low"] == pytest.approx(predicted)
    assert figures["points"]["retained_high"] >= predicted * (1 - 1e-9)
    assert 0.1 <= 1 - figures["macs_after"] / figures["macs_before"] <= 0.11
    text = (undisturbed / "plan.yml").read_text()
    assert f"# measured {measured} of {POINTS} points; " in text
    assert yaml.safe_load(text)["Pruner"]["pruned_ratios"] == figures["ratios"]
    assert figures["candidates"] == [] and figures["measured_ap"] is None


def test_killed_and_continued(detector: Detector, forks: Forks, undisturbed: Path) -> None:
    """In the second round; no point is measured twice, and the plan is the same."""
    folder = forks.folder / "killed"
    folder.mkdir()
    journal = folder / "active.journal.jsonl"
    command = active(detector, folder)
    code = forks.run(*command, until=lambda: len(lines_of(journal)) > 25)
    assert code == -signal.SIGKILL, forks.error()
    before = lines_of(journal)
    assert forks.run(*command) == 0, forks.error()
    assert lines_of(journal)[: len(before) - 1] == before[:-1]
    for name in ("active.journal.jsonl", "plan.json"):
        assert len(lines_of(folder / name)) == len(lines_of(undisturbed / name))
    assert read_result(folder / "active.json").ap == read_result(undisturbed / "active.json").ap
    one, other = (json.loads((f / "plan.json").read_text()) for f in (folder, undisturbed))
    assert one == other


def test_a_copied_file_is_enough(
    cli: Callable[..., Outcome], detector: Detector, undisturbed: Path, in_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Without its journal: nothing is measured again, and the plan is the same."""
    Path("active.json").write_bytes((undisturbed / "active.json").read_bytes())

    def refuse(*arguments: Any) -> Any:
        raise AssertionError("a point was measured")

    monkeypatch.setattr(Analysis, "measure", refuse)
    done(cli(*active(detector, in_folder)))
    plan = json.loads(Path("plan.json").read_text())
    assert plan == json.loads((undisturbed / "plan.json").read_text())


@pytest.fixture
def refused(cli: Callable[..., Outcome], in_folder: Path) -> Callable[..., str]:
    """A command that ends with exit code 2 and one line, and changes no file; gives the line."""

    def run(*arguments: Any) -> str:
        before = files_below(in_folder)
        outcome = cli("ratios", *arguments, "--output", "plan.yml")
        assert outcome.code == 2, outcome.err + outcome.out
        assert files_below(in_folder) == before
        (line,) = outcome.err.splitlines()
        return line

    return run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--macs", "0.1", "--workers", "2"], "--workers is read by --active only"),
        (["--loss", "0.1", "--active"], "--active cannot be combined with --loss"),
        (["--macs", "0.99", "--active"], "the nearest is --macs 0."),
        (["--macs", "0.1", "--active", "--sensitivity", "x.txt"], "expected a .json file"),
        (["--macs", "0.1", "--active", "--sensitivity", "none/x.json"], "in a writable folder"),
        (["--macs", "0.1", "--active", "-o", "weights="], "no weights are given"),
        (["--macs", "0.1", "--active", "--criterion", "l1"], "--criterion 'l1'"),
        (["--macs", "0.1", "--candidates", "9"], "--candidates 9: expected at most"),
        (["--macs", "0.1", "--candidates", "2", "--no_measure"], "leave --no_measure out"),
        (["--loss", "0.1", "--candidates", "2"], "--candidates cannot be combined with --loss"),
        (["--macs", "0.1"], "'new.json' does not exist"),
    ],
)
def test_mistakes_are_one_line(
    refused: Callable[..., str], detector: Detector, arguments: list[str], message: str
) -> None:
    line = refused("-c", detector.config, "--sensitivity", "new.json", *arguments)
    assert line.startswith("slim-det ratios: error: ") and message in line


def test_a_file_of_other_data_is_not_continued(
    refused: Callable[..., str], detector: Detector, undisturbed: Path, in_folder: Path
) -> None:
    """The entry that differs is named, and no journal is left behind."""
    content = json.loads((undisturbed / "active.json").read_text())
    command = ("-c", detector.config, "--active", "--macs", 0.1, "--sensitivity", "old.json")
    for change, message in (
        ({"data_sha256": "0" * 64}, "cannot be merged: data_sha256 is"),
        ({"fingerprint": "0" * 64}, "measured on another model"),
    ):
        Path("old.json").write_text(json.dumps({**content, **change}))
        assert message in refused(*command)


def test_best_of_several(
    cli: Callable[..., Outcome], detector: Detector, undisturbed: Path, in_folder: Path
) -> None:
    """One line each; the best is written, and `eval` measures the same."""
    run = done(
        cli(
            *("ratios", "-c", detector.config, "--sensitivity", undisturbed / "active.json"),
            *("--macs", 0.1, "--candidates", 3, "--output", "plan.yml", "--json", "plan.json"),
        )
    )
    figures = json.loads(Path("plan.json").read_text())
    judged = figures["candidates"]
    assert len(judged) >= 2 and judged[0]["name"].startswith("solver")
    for one in judged:
        line = f"candidate {one['name']}: coco_ap predicted {one['predicted_ap']:.4f}, "
        assert f"{line}measured {one['measured_ap']:.4f}" in run.out
        assert one["macs_after"] <= 0.9 * figures["macs_before"]
    best = max(judged, key=lambda one: one["measured_ap"])
    for key in ("ratios", "measured_ap", "predicted_ap", "macs_after"):
        assert figures[key] == best[key], key
    text = Path("plan.yml").read_text()
    assert f"# best of {len(judged)} candidates, judged after the cut on EvalDataset: " in text
    assert yaml.safe_load(text)["Pruner"]["pruned_ratios"] == best["ratios"]
    done(cli("eval", "-c", detector.config, "--slim_config", "plan.yml", "--json", "eval.json"))
    assert json.loads(Path("eval.json").read_text())["ap"] == best["measured_ap"]
