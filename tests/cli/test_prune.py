"""`slim-det prune`: what it refuses, and what it leaves behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
import yaml

from slim_det.compress.prune.plan import Plan
from slim_det.compress.strategy import step_path
from slim_det.evaluate import evaluation
from slim_det.evaluate.evaluation import EvalResult
from slim_det.training import session
from slim_det.training.checkpoint import stored_step
from tests.commands import Outcome, done, files_below

Refused = Callable[..., str]

LAYERS = ["neck.yolo_block.2.*"]
"""The last block of the head: little is behind it."""

SLIM: dict[str, Any] = {
    "criterion": "elimination",
    "pruned_params": LAYERS,
    "pruned_ratios": [0.5],
    "repair": "least_squares",
    "calibration": {"images": 6, "positions": 600},
}


def slim_file(folder: Path, **changes: Any) -> Path:
    """A slim file that prunes a few layers; None leaves a setting out."""
    settings = {key: value for key, value in {**SLIM, **changes}.items() if value is not None}
    path = folder / "slim.yml"
    path.write_text(yaml.safe_dump({"slim": "Pruner", "Pruner": settings}))
    return path


@pytest.fixture
def run(tiny: Path, unpruned: Path) -> tuple[Any, ...]:
    """Arguments of `prune` on untrained weights of the tiny detector."""
    return ("prune", "-c", tiny, "-o", f"weights={unpruned}")


def test_without_a_slim_file(refused: Refused, run: tuple[Any, ...], tmp_path: Path) -> None:
    line = refused(*run)
    assert "--slim_config is missing; expected a slim file with slim: Pruner" in line
    line = refused(*run, "--slim_config", tmp_path / "gone.yml")
    assert "gone.yml" in line


def test_a_slim_file_of_another_strategy(
    refused: Refused, run: tuple[Any, ...], tmp_path: Path
) -> None:
    path = tmp_path / "ptq.yml"
    path.write_text(yaml.safe_dump({"slim": "PTQ", "PTQ": {}}))
    assert f"--slim_config '{path}': expected slim: Pruner" in refused(*run, "--slim_config", path)


def test_weights_that_are_not_there(refused: Refused, tiny: Path, tmp_path: Path) -> None:
    slim = ("--slim_config", slim_file(tmp_path))
    assert "no weights are given" in refused("prune", "-c", tiny, *slim)
    line = refused("prune", "-c", tiny, *slim, "-o", "weights=gone")
    assert "'gone.pdparams' do not exist" in line


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"repair": "other"}, "Pruner.repair: 'other' is not valid; expected least_squares"),
        ({"repair": True}, "Pruner.repair: True is not valid; expected least_squares"),
        ({"criterion": "eliminate"}, "unknown criterion 'eliminate'; did you mean 'elimination'?"),
        (
            {"calibration": {"num_images": 4}},
            "Pruner.calibration: unknown key 'num_images'; did you mean 'images'?",
        ),
        ({"calibration": {"images": 0}}, "Pruner.calibration.images: 0 is not valid; expected a"),
        ({"calibration": {"ridge": 0}}, "Pruner.calibration.ridge: 0 is not valid; expected a"),
        ({"calibration": [4]}, "Pruner.calibration: expected a mapping of keys, found [4]"),
        ({"calibration": {"folder": "gone"}}, "Pruner.calibration.folder 'gone' is not a folder"),
        (
            {"criterion": "taylor", "calibration": {"folder": "gone"}},
            "Pruner.calibration.folder: criterion 'taylor' needs labels and the images of 'gone' "
            "have none; expected those of TrainDataset, without a folder",
        ),
        ({"pruned_params": ["neck.yolo_blok.*"]}, "neck.yolo_blok.*"),
        ({"pruned_ratios": [1.5]}, "1.5"),
    ],
)
def test_settings_that_cannot_be(
    refused: Refused, run: tuple[Any, ...], changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    assert said in refused(*run, "--slim_config", slim_file(tmp_path, **changes))


@pytest.mark.parametrize("number", ["0", "-2", "few"])
def test_a_number_of_images_that_cannot_be(
    cli: Callable[..., Outcome], run: tuple[Any, ...], number: str, tmp_path: Path
) -> None:
    """Flags are checked by argparse, which shows how they are used above its line."""
    slim = slim_file(tmp_path)
    outcome = cli(*run, "--slim_config", slim, "--num_images", number)
    assert outcome.code == 2
    last = outcome.err.splitlines()[-1]
    assert (
        last == f"slim-det prune: error: argument --num_images: invalid positive value: '{number}'"
    )
    assert list(tmp_path.iterdir()) == [slim]


def test_images_that_cannot_be(refused: Refused, run: tuple[Any, ...], tmp_path: Path) -> None:
    """A folder without images, or with a file that only looks like one."""
    slim, folder = slim_file(tmp_path), tmp_path / "photos"
    given = (*run, "--slim_config", slim, "--images", folder)
    folder.mkdir()
    (folder / "notes.txt").write_text("nothing")
    assert f"'{folder}' has no image" in refused(*given)
    (folder / "a.jpg").write_text("not an image")
    assert f"'{folder / 'a.jpg'}' is not an image" in refused(*given)


def test_images_are_checked_before_the_model_is_built(
    refused: Refused, run: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The message names the flag, or the key of the slim file, that has the folder."""
    monkeypatch.setattr(session, "build_model", lambda cfg: pytest.fail("a model was built"))
    flag = (*run, "--slim_config", slim_file(tmp_path), "--images", "gone")
    assert refused(*flag).endswith("--images 'gone' is not a folder")
    key = (*run, "--slim_config", slim_file(tmp_path, calibration={"folder": "gone"}))
    assert refused(*key).endswith("Pruner.calibration.folder 'gone' is not a folder")


@pytest.mark.parametrize("flag", [("--images", "."), ("--num_images", "3")])
def test_flags_that_nothing_reads(
    refused: Refused, run: tuple[Any, ...], flag: tuple[str, str], tmp_path: Path
) -> None:
    slim = slim_file(tmp_path, criterion="fpgm", repair=None)
    assert refused(*run, "--slim_config", slim, *flag).endswith(
        f"{flag[0]} is read by criterion: elimination and repair: least_squares only, and "
        f"'{slim}' asks for neither"
    )


def test_an_image_that_ends_too_early(
    refused: Refused, run: tuple[Any, ...], shapes: Path, tmp_path: Path
) -> None:
    """Its header is that of an image; the rest is missing."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for path in sorted((shapes / "images").iterdir())[:2]:
        shutil.copy(path, folder)
    broken = sorted(folder.iterdir())[1]
    broken.write_bytes(broken.read_bytes()[:200])
    line = refused(*run, "--slim_config", slim_file(tmp_path), "--images", folder)
    assert str(broken) in line


def test_weights_that_are_not_numbers(
    refused: Refused, tiny: Path, unpruned: Path, tmp_path: Path
) -> None:
    state = paddle.load(f"{unpruned}.pdparams", return_numpy=True)
    name = "backbone.conv1._conv.weight"
    name = name if name in state else next(iter(state))
    state[name] = np.full_like(state[name], np.nan)
    paddle.save(state, str(tmp_path / "nan.pdparams"))
    line = refused(
        *("prune", "-c", tiny, "-o", f"weights={tmp_path / 'nan'}"),
        *("--slim_config", slim_file(tmp_path)),
    )
    assert f"'{name}' holds values that are not finite" in line


def test_no_room_for_the_results(refused: Refused, run: tuple[Any, ...], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    slim = ("--slim_config", slim_file(tmp_path))
    line = refused(*run, *slim, "--save_dir", tmp_path / "file")
    assert str(tmp_path / "file") in line
    line = refused(*run, *slim, "--json", tmp_path / "gone" / "figures.json")
    assert "--json" in line and "expected a file in a writable folder" in line


def test_what_is_left_behind(
    cli: Callable[..., Outcome],
    tiny: Path,
    run: tuple[Any, ...],
    shapes: Path,
    tmp_path: Path,
) -> None:
    """Weights with their plan, which evaluate as measured, and figures; flags win over the file."""
    slim, saved = slim_file(tmp_path, calibration={"images": 99}), tmp_path / "saved"
    outcome = done(
        cli(
            *(*run, "--slim_config", slim, "--num_images", 3, "--images", shapes / "images"),
            *("--save_dir", saved, "--json", tmp_path / "figures.json", "--eval"),
        )
    )
    stem = saved / "tiny" / "model_pruned"
    assert outcome.out.splitlines()[-1] == f"{stem}.pdparams"
    assert "error, repaired" in outcome.out
    for label in ("before", "after the cut", "after the repair"):
        assert f"{label}: " in outcome.out
    assert sorted(files_below(saved / "tiny")) == [
        "model_pruned.pdparams",
        "model_pruned.plan.json",
    ]
    plan = stored_step(str(stem), Plan)
    assert plan is not None and plan.settings["criterion"] == "elimination"
    figures = json.loads((tmp_path / "figures.json").read_text())
    _check_figures(figures, plan, stem)
    assert figures["repair"]["images"] == 3
    assert figures["repair"]["folder"] == str(shapes / "images")
    evaluated = done(
        cli("eval", "-c", tiny, "-o", f"weights={stem}", "--json", tmp_path / "eval.json")
    )
    assert "cut" not in evaluated.err
    again = json.loads((tmp_path / "eval.json").read_text())
    assert again["ap"] == pytest.approx(figures["ap_repaired"], abs=1e-9)
    _check_second_time(cli, tiny, stem, slim, tmp_path)


def _check_figures(figures: dict[str, Any], plan: Plan, stem: Path) -> None:
    assert set(figures) == {
        "checkpoint", "seconds", "criterion", "image_size_hw", "groups", "before", "after",
        "repair", "metric", "ap_before", "ap_cut", "ap_repaired", "per_class_before",
        "per_class_cut", "per_class_repaired",
    }  # fmt: skip
    assert figures["checkpoint"] == f"{stem}.pdparams"
    assert figures["image_size_hw"] == [96, 96]
    assert figures["metric"] == "coco_ap"
    assert (figures["before"], figures["after"]) == (plan.cost["before"], plan.cost["after"])
    assert figures["after"]["macs"] < figures["before"]["macs"]
    for name, group in figures["groups"].items():
        assert name.startswith("neck.yolo_block.2.")
        assert group["kept"] == len(plan.groups[name]["kept"]) == group["channels"] // 2
    layers = figures["repair"]["layers"]
    assert len(layers) >= 6 and figures["repair"] == plan.repair
    assert all(0.0 <= layer["after"] <= layer["before"] for layer in layers)
    assert all(0.0 <= figures[key] <= 1.0 for key in ("ap_before", "ap_cut", "ap_repaired"))


def test_pruned_again(
    cli: Callable[..., Outcome],
    tiny: Path,
    run: tuple[Any, ...],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """A quarter is left, with one plan; what was measured after the cut is the cut alone."""
    saved = tmp_path / "saved" / "tiny" / "model_pruned"

    def pruned(start: tuple[Any, ...], *flags: Any, **changes: Any) -> dict[str, np.ndarray]:
        slim = slim_file(tmp_path, **changes)
        done(cli(*start, "--slim_config", slim, "--save_dir", tmp_path / "saved", *flags))
        state: dict[str, np.ndarray] = paddle.load(f"{saved}.pdparams", return_numpy=True)
        return state

    first = pruned(run, criterion="l1_norm", repair=None, calibration=None)
    for suffix in (".pdparams", ".plan.json"):
        shutil.copy(f"{saved}{suffix}", tmp_path / f"first{suffix}")
    start = ("prune", "-c", tiny, "-o", f"weights={tmp_path / 'first'}")
    cut = pruned(start, again=True, repair=None)
    states: dict[str, dict[str, np.ndarray]] = {}

    def measured(cfg: Any, model: paddle.nn.Layer) -> EvalResult:
        states[str(len(states))] = {name: v.numpy() for name, v in model.state_dict().items()}
        return EvalResult("coco_ap", 0.25 * len(states), 0.5, {}, 6, "dygraph", 1.0)

    monkeypatch.setattr(evaluation, "evaluate_model", measured)
    figures = tmp_path / "figures.json"
    repaired = pruned(start, "--eval", "--json", figures, again=True)
    for found, expected in zip(states.values(), (first, cut, repaired)):
        assert found.keys() == expected.keys()
        assert all(np.array_equal(found[name], expected[name]) for name in found)
    assert any(not np.array_equal(cut[name], repaired[name]) for name in cut)
    plan = stored_step(str(saved), Plan)
    assert plan is not None and plan.repair is not None
    assert [one["criterion"] for one in plan.settings["earlier"]] == ["l1_norm"]
    for entry in plan.groups.values():
        assert len(entry["kept"]) == entry["channels"] // 4
    written = json.loads(figures.read_text())
    assert [written[f"ap_{key}"] for key in ("before", "cut", "repaired")] == [0.25, 0.5, 0.75]
    assert done(cli("verify", "-c", tiny, "-o", f"weights={saved}")).out.count("pass") == 4


def _check_second_time(
    cli: Callable[..., Outcome], tiny: Path, stem: Path, slim: Path, folder: Path
) -> None:
    """Pruned weights are refused, also in another folder, and stay as they are."""
    before = files_below(folder)
    for saved, expected in (
        ("saved", "would be replaced by what is left of them; expected another --save_dir"),
        (
            "other",
            "are pruned already; expected weights that are not, or Pruner.again: true to prune "
            "what is left",
        ),
    ):
        outcome = cli(
            *("prune", "-c", tiny, "-o", f"weights={stem}", "--slim_config", slim),
            *("--save_dir", folder / saved),
        )
        assert outcome.code == 2
        (line,) = outcome.err.splitlines()
        assert line.endswith(f"'{stem}' {expected}")
        assert files_below(folder) == before


def test_by_gradients(cli: Callable[..., Outcome], run: tuple[Any, ...], tmp_path: Path) -> None:
    """Chosen from labelled images and then repaired; a folder without labels is refused."""
    slim, saved = slim_file(tmp_path, criterion="taylor"), tmp_path / "saved"
    done(cli(*run, "--slim_config", slim, "--save_dir", saved))
    plan = stored_step(str(saved / "tiny" / "model_pruned"), Plan)
    assert plan is not None and plan.settings["criterion"] == "taylor"
    assert plan.settings["calibration"]["images"] == plan.repair["images"] == 6
    assert len(plan.groups) == 6
    outcome = cli(*run, "--slim_config", slim, "--images", tmp_path)
    assert outcome.code == 2 and "criterion 'taylor' needs labels" in outcome.err


def test_without_images(cli: Callable[..., Outcome], run: tuple[Any, ...], tmp_path: Path) -> None:
    """A criterion of weights and no repair: no image is read, and nothing of it is reported."""
    slim = slim_file(tmp_path, criterion="l1_norm", repair=None, calibration=None)
    done(
        cli(
            *run,
            "TrainDataset.dataset_dir=gone",
            *("--slim_config", slim, "--save_dir", tmp_path / "saved"),
            *("--json", tmp_path / "figures.json"),
        )
    )
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["repair"] is figures["ap_before"] is figures["ap_repaired"] is None
    assert figures["criterion"] == "l1_norm" and len(figures["groups"]) == 6
    stem = tmp_path / "saved" / "tiny" / "model_pruned"
    assert step_path(stem, Plan).is_file() and Path(f"{stem}.pdparams").is_file()
