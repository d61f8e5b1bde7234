"""`slim-det ratios` from a sensitivity file to a slim file that trains, and all it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml

from slim_det.compress.prune.pruner import Pruner
from slim_det.compress.tensors import fingerprint, tensor_shapes
from slim_det.core.files import sha256_of
from slim_det.detectors.yolov3_head import YOLO_HEAD_LAYERS
from slim_det.planning.budget.costs import TracedModel
from slim_det.planning.profile.shapes import conv_shapes
from slim_det.planning.profile.table import ENGINE, Entry, LatencyTable, Origin, read_table
from slim_det.planning.sensitivity.result import write_result
from tests.commands import Outcome, files_below
from tests.planning.budget.losses import result_of
from tests.planning.budget.models import traced_model
from tests.support import restored_config

LAYERS = YOLO_HEAD_LAYERS[:6]
LOSSES = {
    name: {r / 10: round((i + 1) * 0.1 * (r / 10) ** 2, 6) for r in range(1, 10, 2)}
    for i, name in enumerate(LAYERS)
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the files that all tests read are."""
    return tmp_path_factory.mktemp("ratios")


@pytest.fixture(scope="module")
def traced(tiny: Path, ppdet_registered: None) -> TracedModel:
    """The tiny detector at 96x96 pixels with its operators and groups."""
    with restored_config():
        return traced_model(tiny)


@pytest.fixture(scope="module")
def files(folder: Path, traced: TracedModel) -> dict[str, Path]:
    """A sensitivity file of the tiny detector and a latency table of its convolutions."""
    own = fingerprint(type(traced.model).__name__, tensor_shapes(traced.model))
    write_result(folder / "sensitivity.json", result_of(LOSSES, own))
    entries = {}
    for _, shape in conv_shapes(traced.trace):
        time_ms = 0.01 + shape.macs * 1e-7
        entries[shape] = Entry(shape, time_ms, time_ms, time_ms)
    origin = Origin(ENGINE, "", "made up")
    LatencyTable(origin, tuple(entries.values()), 1, (96, 96), 0.5).write(folder / "latency.json")
    return {"losses": folder / "sensitivity.json", "table": folder / "latency.json"}


@pytest.fixture
def solve(
    cli: Callable[..., Outcome], tiny: Path, files: dict[str, Path], tmp_path: Path
) -> Callable[..., dict[str, Any]]:
    """Run the command without evaluation; gives the JSON."""

    def run(*arguments: Any) -> dict[str, Any]:
        output = ("--output", tmp_path / "plan.yml", "--json", tmp_path / "plan.json")
        given = ("--sensitivity", files["losses"], "--no_measure", *output)
        outcome = cli("ratios", "-c", tiny, *given, *arguments)
        assert outcome.code == 0, outcome.err
        return json.loads((tmp_path / "plan.json").read_text())

    return run


def test_measured_and_then_trained(
    cli: Callable[..., Outcome],
    tiny: Path,
    unpruned: Path,
    files: dict[str, Path],
    tmp_path: Path,
) -> None:
    """The measured AP is what `eval` says of the cut; `train` reaches the MACs of the plan."""
    plan, figures, png = (tmp_path / f"plan.{end}" for end in ("yml", "json", "png"))
    run = cli(
        *("ratios", "-c", tiny, "--sensitivity", files["losses"], "--macs", 0.1),
        *("--output", plan, "--json", figures, "--png", png, "-o", f"weights={unpruned}"),
    )
    assert run.code == 0, run.err
    result = json.loads(figures.read_text())
    assert 0.1 <= 1 - result["macs_after"] / result["macs_before"] <= 0.11
    assert result["target"] == {"kind": "macs", "value": 0.1}
    assert "predicted coco_ap" in run.out and LAYERS[0] in run.out and "removed" in run.out
    image = cv2.imread(str(png))
    assert image is not None and image.std() > 5

    run = cli(
        *("eval", "-c", tiny, "--slim_config", plan),
        *("-o", f"weights={unpruned}", "--json", tmp_path / "eval.json"),
    )
    assert run.code == 0, run.err
    assert json.loads((tmp_path / "eval.json").read_text())["ap"] == result["measured_ap"]

    run = cli(
        *("train", "-c", tiny, "--slim_config", plan),
        *("-o", f"save_dir={tmp_path / 'saved'}", f"pretrain_weights={unpruned}"),
    )
    assert run.code == 0, run.err
    trained = json.loads((tmp_path / "saved" / "tiny" / "model_final.plan.json").read_text())
    assert trained["cost"]["after"]["macs"] == result["macs_after"]
    assert trained["settings"]["ratios"] == result["ratios"]


def test_slim_file_says_where_it_comes_from(
    solve: Callable[..., dict[str, Any]], files: dict[str, Path], tmp_path: Path
) -> None:
    result = solve("--params", 0.05, "--align", 8)
    text = (tmp_path / "plan.yml").read_text()
    comments = [line for line in text.splitlines() if line.startswith("#")]
    for said in (sha256_of(files["losses"]), "coco_ap, baseline 0.4000", "not measured", "5.00%"):
        assert any(said in line for line in comments), said
    assert str(tmp_path) not in text
    content = yaml.safe_load(text)
    assert content == {
        "slim": "Pruner",
        "Pruner": {"criterion": "l1_norm", "pruned_ratios": result["ratios"], "align": 8},
    }
    assert result["measured_ap"] is None and result["latency_ms_before"] is None
    assert {path.name for path in tmp_path.iterdir()} == {"plan.yml", "plan.json"}


def test_latency_target(
    solve: Callable[..., dict[str, Any]], files: dict[str, Path], traced: TracedModel
) -> None:
    """The figures are the table's own for the model before and after the plan."""
    table = read_table(files["table"])
    before = table.model_ms(s for _, s in conv_shapes(traced.trace))
    result = solve("--latency_ms", repr(0.98 * before), "--table", files["table"])
    assert result["latency_ms_before"] == pytest.approx(before, rel=1e-12)
    assert 0.97 * before <= result["latency_ms_after"] <= 0.98 * before
    pruner = Pruner(pruned_ratios=result["ratios"])
    plan = pruner.plan(traced.model, traced.trace, traced.groups)
    after = table.model_ms(s for _, s in conv_shapes(traced.trace, plan.shapes_after()))
    assert result["latency_ms_after"] == pytest.approx(after, rel=1e-12)


def test_front_is_sorted_and_complete(solve: Callable[..., dict[str, Any]]) -> None:
    front = solve("--loss", 0.05)["front"]
    assert len(front) > 5 and front[-1]["removed"] == pytest.approx(0.0)
    assert (np.diff([row["macs"] for row in front]) > 0).all()
    assert (np.diff([row["predicted_ap"] for row in front]) > 0).all()
    assert front[-1]["predicted_ap"] == pytest.approx(0.4)


@pytest.fixture
def refused(
    cli: Callable[..., Outcome],
    tiny: Path,
    files: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., str]:
    """Run a command that must end with exit code 2, one line and no file; gives the line."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: Any, losses: Path | None = None) -> str:
        before = files_below(tmp_path)
        given = ("--sensitivity", losses or files["losses"], "--output", "plan.yml")
        outcome = cli("ratios", "-c", tiny, *given, *arguments)
        assert files_below(tmp_path) == before
        assert outcome.code == 2, outcome.err + outcome.out
        lines = outcome.err.splitlines()
        assert len(lines) == 1, outcome.err
        return lines[0]

    return run


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "one target is needed, none given"),
        (["--loss", "0.1", "--macs", "0.1"], "--loss and --macs given"),
        (["--macs", "-0.5"], "--macs -0.5 is not valid"),
        (["--params", "1.5"], "between 0 and 1"),
        (["--macs", "0.99"], "the nearest is --macs 0."),
        (["--loss", "1e-9"], "nothing is cut"),
        (["--latency", "0.3"], "needs --table FILE"),
        (["--latency_ms", "5", "--table", "none.json"], "none.json"),
        (["--macs", "0.1", "--max_ratio", "1"], "--max_ratio 1 is not valid"),
        (["--macs", "0.1", "--output", "plan.txt"], "expected a .yml or .yaml file"),
        (["--macs", "0.1", "--output", "none/plan.yml"], "in a writable folder"),
        (["--macs", "0.1", "--png", "front.jpg"], "expected a .png file"),
        (["--macs", "0.1", "--json", "none/plan.json"], "in a writable folder"),
    ],
)
def test_wrong_arguments(refused: Callable[..., str], arguments: list[str], said: str) -> None:
    assert said in refused("--no_measure", *arguments)


def test_measuring_needs_weights(refused: Callable[..., str]) -> None:
    assert "no weights are given" in refused("--macs", "0.1")


def test_missing_and_damaged_losses(refused: Callable[..., str], folder: Path) -> None:
    target = ("--macs", "0.1", "--no_measure")
    assert "does not exist" in refused(*target, losses=folder / "none.json")
    cut = folder / "cut.json"
    cut.write_text((folder / "sensitivity.json").read_text()[:200])
    assert "cut.json" in refused(*target, losses=cut)


def test_losses_of_something_else(
    refused: Callable[..., str], folder: Path, unpruned: Path, ppdet_registered: None
) -> None:
    path = folder / "other.json"
    target = ("--macs", "0.1", "--no_measure")
    write_result(path, result_of(LOSSES, "0" * 64))
    assert "measured on another model" in refused(*target, losses=path)
    write_result(path, result_of({"neck.yolo_block.0.tipp": {0.5: 0.1}}))
    assert "did you mean 'neck.yolo_block.0.tip'?" in refused(*target, losses=path)
    write_result(path, result_of(LOSSES, metric="voc_map_11point"))
    said = refused("--macs", "0.1", "-o", f"weights={unpruned}", losses=path)
    assert "holds voc_map_11point, but the configuration measures coco_ap" in said
