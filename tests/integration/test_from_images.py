"""Channels chosen from images, and layers repaired from them, as a user does it: the commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import paddle
import pytest
import yaml

from slim_det.compress.prune.plan import Plan
from slim_det.core.files import sha256_of
from slim_det.planning.sensitivity.result import read_result
from tests.commands import Outcome, command, done, files_below
from tests.support import ROOT

Cli = Callable[..., Outcome]

BLOCK = "neck.yolo_block.2"
CONVS = [f"{BLOCK}.conv_module.{name}" for name in ("conv0", "conv1", "conv2", "conv3", "route")]
LAYERS = [*CONVS, f"{BLOCK}.tip"]
CALIBRATION = {"images": 4, "positions": 200}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the files that several tests read are."""
    return tmp_path_factory.mktemp("from_images")


def slim_file(path: Path, **pruner: Any) -> Path:
    """Half of the channels of two layers, chosen by elimination and repaired."""
    settings = {
        "criterion": "elimination",
        "pruned_ratios": {CONVS[0]: 0.5, LAYERS[-1]: 0.5},
        "repair": "least_squares",
        "calibration": CALIBRATION,
        **pruner,
    }
    path.write_text(yaml.safe_dump({"slim": "Pruner", "Pruner": settings}), encoding="utf-8")
    return path


@pytest.fixture
def refused(cli: Cli, in_folder: Path) -> Callable[..., str]:
    """A command that ends with exit code 2 and one line, and changes no file; gives the line."""

    def run(*arguments: Any) -> str:
        before = files_below(in_folder)
        outcome = cli(*arguments)
        assert outcome.code == 2, outcome.err + outcome.out
        assert files_below(in_folder) == before
        lines = outcome.err.splitlines()
        assert len(lines) == 1, outcome.err
        return lines[0]

    return run


@pytest.fixture
def losses(cli: Cli, tiny: Path, unpruned: Path, folder: Path) -> Path:
    """The error curves of one block; measured once."""
    output = folder / "errors.json"
    if not output.exists():
        grid = ("--params", f"{BLOCK}.*", "--ratios", "0.3", "0.6", "--num_images", 4)
        run = done(
            cli(
                *("sensitivity", "-c", tiny, "--method", "error", *grid, "--output", output),
                *("-o", f"weights={unpruned}"),
            )
        )
        (folder / "errors.txt").write_text(run.out)
    return output


def test_error_curves(losses: Path, unpruned: Path, folder: Path) -> None:
    """One file of the family that `ratios` reads, its table and its picture; no journal."""
    result = read_result(losses)
    assert result.metric == "detection_error" and result.criterion == "elimination"
    assert result.baseline is None and result.ap == {} and result.conditions.num_images == 4
    assert result.complete and list(result.groups) == list(result.request.group_order)
    assert set(result.groups) == set(LAYERS)
    for name, row in result.groups.items():
        assert 0.0 < row[0.3] < row[0.6] < 1.0, name
    assert result.sources.weights_sha256 == sha256_of(f"{unpruned}.pdparams")
    printed = (folder / "errors.txt").read_text()
    assert all(name in printed for name in LAYERS)
    picture = cv2.imread(str(folder / "errors.png"))
    assert picture is not None and picture.std() > 5
    assert not list(folder.glob("*journal*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--criterion", "fpgm"], "--criterion cannot be combined with --method error"),
        (["--metric", "ap"], "--metric cannot be combined with --method error"),
        (["--workers", "2"], "--workers cannot be combined with --method error"),
        (["--shard", "1/2"], "--shard cannot be combined with --method error"),
        (["--cache_mb", "10"], "--cache_mb cannot be combined with --method error"),
        (["--bootstrap", "10"], "--bootstrap cannot be combined with --method error"),
        (["--images", "none"], "'none'"),
        (["--ratios", "1.5"], "'1.5' is not strictly between 0 and 1"),
        (["--params", f"{BLOCK}.tipp"], f"did you mean '{BLOCK}.tip'?"),
        (["-o", "weights="], "no weights are given"),
    ],
)
def test_mistakes_with_error_curves(
    refused: Callable[..., str], tiny: Path, unpruned: Path, arguments: list[str], message: str
) -> None:
    given = [] if "-o" in arguments else ["-o", f"weights={unpruned}"]
    line = refused("sensitivity", "-c", tiny, "--method", "error", *arguments, *given)
    assert line.startswith("slim-det sensitivity: error: ") and message in line


def test_flags_of_one_method_only(
    refused: Callable[..., str], tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing that was asked for is left out without a word."""
    assert "--images is read by --method error only" in refused(
        "sensitivity", "-c", tiny, "--images", "photos"
    )
    for other in ("--merge", "--import_pickle"):
        line = refused("sensitivity", "--method", "error", other, "a.json")
        assert "--method error cannot be combined with --merge or --import_pickle" in line
    assert "-c is missing" in refused("sensitivity", "--method", "error")
    monkeypatch.setenv("PADDLE_TRAINERS_NUM", "2")
    line = refused("sensitivity", "-c", tiny, "--method", "error")
    assert "--method error runs in one process" in line


def test_ratios_from_error_curves(
    cli: Cli, tiny: Path, unpruned: Path, losses: Path, in_folder: Path
) -> None:
    """From the file alone with --no_measure; otherwise the same ratios are also measured."""
    command = ("ratios", "-c", tiny, "--sensitivity", losses, "--macs", 0.05, "--png", "front.png")
    run = done(cli(*command, "--no_measure", "--output", "plain.yml", "--json", "plain.json"))
    assert "predicted" in run.out
    plain = json.loads(Path("plain.json").read_text())
    assert (plain["metric"], plain["criterion"]) == ("detection_error", "elimination")
    assert plain["baseline_ap"] is plain["predicted_ap"] is plain["measured_ap"] is None
    assert 0.05 <= 1 - plain["macs_after"] / plain["macs_before"] <= 0.06
    assert yaml.safe_load(Path("plain.yml").read_text()) == {
        "slim": "Pruner",
        "Pruner": {"criterion": "elimination", "pruned_ratios": plain["ratios"]},
    }
    weights = ("-o", f"weights={unpruned}")
    done(cli(*command, "--output", "measured.yml", "--json", "measured.json", *weights))
    measured = json.loads(Path("measured.json").read_text())
    assert measured["ratios"] == plain["ratios"]
    assert yaml.safe_load(Path("measured.yml").read_text()) == yaml.safe_load(
        Path("plain.yml").read_text()
    )
    assert 0.0 <= measured["measured_ap"] <= 1.0


def test_inspect_counts_what_images_will_choose(cli: Cli, tiny: Path, in_folder: Path) -> None:
    """Without weights or images: how many channels, and what they save."""
    done(cli("inspect", "-c", tiny, "--slim_config", slim_file(Path("e.yml")), "--json", "e.json"))
    found = json.loads(Path("e.json").read_text())
    cut = {group["name"]: group for group in found["groups"] if group["ratio"]}
    assert set(cut) == {CONVS[0], LAYERS[-1]}
    assert all(group["kept"] * 2 == group["channels"] for group in cut.values())
    assert found["after"]["macs"] < found["before"]["macs"]


@pytest.fixture
def saved(cli: Cli, tiny: Path, unpruned: Path, folder: Path) -> Path:
    """Path, without suffix, of what `slim-det prune` writes; pruned once."""
    stem = folder / "tiny" / "model_pruned"
    if not Path(f"{stem}.pdparams").exists():
        slim = slim_file(folder / "slim.yml")
        run = done(
            cli(
                *("prune", "-c", tiny, "--slim_config", slim, "--eval", "--num_images", 3),
                *("--save_dir", folder, "--json", folder / "prune.json"),
                *("-o", f"weights={unpruned}"),
            )
        )
        (folder / "prune.txt").write_text(run.out)
    return stem


def test_pruned_and_repaired_without_training(saved: Path, unpruned: Path, folder: Path) -> None:
    """The plan says how, the flag overrides the slim file, and every stage was evaluated."""
    plan = Plan.read(f"{saved}.plan.json")
    assert plan.settings["criterion"] == "elimination"
    assert plan.settings["calibration"] == {
        **CALIBRATION,
        "images": 3,
        "folder": None,
        "ridge": 1e-4,
    }
    assert plan.repair["images"] == 3 and plan.repair["layers"]
    before, after = (
        paddle.load(f"{path}.pdparams", return_numpy=True) for path in (unpruned, saved)
    )
    for layer in plan.repair["layers"]:
        name = layer["weight"]
        same = np.array_equal(after[name], plan.slice(name, before[name]))
        assert same == bool(layer["note"]), name
        assert 0.0 <= layer["after"] <= layer["before"]
    figures, printed = (
        json.loads((folder / "prune.json").read_text()),
        (folder / "prune.txt").read_text(),
    )
    assert figures["checkpoint"] == f"{saved}.pdparams"
    assert figures["repair"] == plan.repair and figures["after"] == plan.cost["after"]
    for label, key in (
        ("before", "before"),
        ("after the cut", "cut"),
        ("after the repair", "repaired"),
    ):
        assert f"{label}: " in printed and 0.0 <= figures[f"ap_{key}"] <= 1.0


def test_the_pruned_weights_are_weights(
    cli: Cli, refused: Callable[..., str], tiny: Path, saved: Path, in_folder: Path
) -> None:
    """Equal to the masked model, and already what the slim file asks for."""
    weights, slim = ("-o", f"weights={saved}"), slim_file(Path("slim.yml"))
    verified = done(cli("verify", "-c", tiny, *weights, "--json", "verify.json"))
    assert verified.out.count("pass") == 4
    figures = json.loads(Path("verify.json").read_text())
    assert f"\n{figures['compared']}\n" in verified.out
    assert "these are the repaired weights" in figures["compared"]
    run = done(cli("eval", "-c", tiny, "--slim_config", slim, *weights))
    assert "is already cut as" in run.out + run.err
    line = refused("prune", "-c", tiny, "--slim_config", slim, *weights)
    assert "are pruned already; expected weights that are not" in line


def test_mistakes_with_prune(refused: Callable[..., str], tiny: Path, unpruned: Path) -> None:
    weights = ("-o", f"weights={unpruned}")
    assert "--slim_config is missing" in refused("prune", "-c", tiny, *weights)
    qat = ROOT / "configs" / "yolov3" / "qat.yml"
    assert "expected slim: Pruner" in refused("prune", "-c", tiny, "--slim_config", qat, *weights)
    slim = slim_file(Path("slim.yml"))
    command = ("prune", "-c", tiny, "--slim_config", slim)
    assert "no weights are given" in refused(*command)
    assert "'none'" in refused(*command, "--images", "none", *weights)


def test_threads_and_batches(tiny: Path, unpruned: Path, in_folder: Path) -> None:
    """The same channels are kept, and weights differ by the order of float32 sums at most.

    By 5e-5 of the largest of their tensor (measured: 7e-7 and, on another CPU, 1.5e-5); the batch
    size of a reader changes nothing.
    """
    states, kept = [], []
    for threads, batch_size in ((1, 1), (2, 4)):
        saved = in_folder / str(threads)
        run = command(
            *("prune", "-c", tiny, "--slim_config", slim_file(Path("slim.yml"))),
            *("--save_dir", saved, "-o", f"weights={unpruned}"),
            f"TestReader.batch_size={batch_size}",
            cwd=in_folder,
            OMP_NUM_THREADS=str(threads),
        )
        assert run.code == 0, run.err
        stem = saved / "tiny" / "model_pruned"
        states.append(paddle.load(f"{stem}.pdparams", return_numpy=True))
        kept.append(Plan.read(f"{stem}.plan.json").groups)
    assert kept[0] == kept[1]
    for name, value in states[0].items():
        limit = 5e-5 * np.abs(value).max()
        np.testing.assert_allclose(states[1][name], value, rtol=0, atol=limit, err_msg=name)


@pytest.mark.slow
def test_cut_and_repaired_again(cli: Cli, tiny: Path, trained: Path, in_folder: Path) -> None:
    """A quarter of what a training with r578 has left; the result is the masked model."""
    slim = slim_file(Path("again.yml"), pruned_ratios={LAYERS[-1]: 0.25}, again=True)
    start = ("-o", f"pretrain_weights={trained}", "save_dir=saved")
    done(cli("train", "-c", tiny, "--slim_config", slim, *start))
    stem = Path("saved") / "tiny" / "model_final"
    plan = Plan.read(f"{stem}.plan.json")
    assert plan.repair["layers"] and plan.settings["earlier"][0]["criterion"] == "l1_norm"
    assert done(cli("verify", "-c", tiny, "-o", f"weights={stem}")).out.count("pass") == 4
