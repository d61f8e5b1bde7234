"""Weights, plans and artifacts that do not fit: one line, exit code 2, nothing written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest

Refused = Callable[..., str]


def weights(stem: Path) -> tuple[str, str]:
    return "-o", f"weights={stem}"


def copied(stem: Path, folder: Path, *suffixes: str) -> Path:
    """Copy some files of a checkpoint that no test may change."""
    folder.mkdir(exist_ok=True)
    for suffix in suffixes:
        shutil.copy(f"{stem}{suffix}", folder / f"copy{suffix}")
    return folder / "copy"


def test_none_given(refused: Refused, tiny: Path) -> None:
    assert "no weights are given; add -o weights=PATH" in refused("eval", "-c", tiny)


def test_missing(refused: Refused, tiny: Path) -> None:
    line = refused("eval", "-c", tiny, *weights(Path("gone/model_final")))
    assert "'gone/model_final.pdparams' do not exist" in line
    line = refused("train", "-c", tiny, "-o", "pretrain_weights=gone.pdparams")
    assert "'gone.pdparams' do not exist" in line
    assert "'gone.pdparams' do not exist" in refused("train", "-c", tiny, "-r", "gone")


@pytest.mark.parametrize("command", ["eval", "train"])
def test_cut_short(
    refused: Refused, tiny: Path, unpruned: Path, tmp_path: Path, command: str
) -> None:
    stem = copied(unpruned, tmp_path / "cut", ".pdparams")
    content = Path(f"{stem}.pdparams").read_bytes()
    Path(f"{stem}.pdparams").write_bytes(content[: len(content) // 2])
    key = "weights" if command == "eval" else "pretrain_weights"
    line = refused(command, "-c", tiny, "-o", f"{key}={stem}")
    assert f"'{stem}.pdparams' cannot be read" in line


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"not a file of paddle", "cannot be read"),
        (b"", "cannot be read"),
        ({"epoch": 3}, "is not a file of weights: 'epoch' is a int"),
        ([1, 2], "is not a file of named tensors"),
    ],
)
def test_other_files(refused: Refused, tiny: Path, tmp_path: Path, content: Any, said: str) -> None:
    path = tmp_path / "other.pdparams"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        paddle.save(content, str(path))
    line = refused("eval", "-c", tiny, *weights(path))
    assert str(path) in line and said in line


def test_another_width(refused: Refused, tiny: Path, unpruned: Path) -> None:
    """The first tensors that differ are shown with both shapes."""
    wider = "ScaledYOLOv3FPN.width=0.5"
    line = refused("eval", "-c", tiny, *weights(unpruned), wider)
    assert "conv0.conv.weight is [128, 256, 1, 1] in the file and [256, 256, 1, 1] in" in line
    line = refused("train", "-c", tiny, "-o", f"pretrain_weights={unpruned}", wider)
    assert "are of another width" in line and "[128, 256, 1, 1] in the file" in line


def test_another_number_of_classes(refused: Refused, tiny: Path, unpruned: Path) -> None:
    """Said in words, not in shapes only."""
    line = refused("export", "-c", tiny, *weights(unpruned), "num_classes=3")
    assert "the file is of 4 classes, num_classes is 3" in line


def test_values_that_are_not_finite(
    refused: Refused, tiny: Path, unpruned: Path, tmp_path: Path
) -> None:
    state = paddle.load(f"{unpruned}.pdparams", return_numpy=True)
    name = "neck.yolo_block.0.tip.conv.weight"
    state[name] = np.full_like(state[name], np.nan)
    paddle.save(state, str(tmp_path / "nan.pdparams"))
    line = refused("eval", "-c", tiny, *weights(tmp_path / "nan"))
    assert f"'{name}' holds values that are not finite" in line


def test_plan_left_behind(refused: Refused, tiny: Path, trained: Path, tmp_path: Path) -> None:
    """Weights of a pruned model are not taken for those of an unpruned one."""
    stem = copied(trained, tmp_path / "alone", ".pdparams")
    line = refused("eval", "-c", tiny, *weights(stem))
    assert "a pruned model's weights need 'copy.plan.json' beside them" in line


def test_plan_of_another_model(refused: Refused, tiny: Path, trained: Path) -> None:
    line = refused("eval", "-c", tiny, *weights(trained), "MobileNet.scale=0.5")
    assert f"'{trained}.plan.json': the plan belongs to another model: backbone.conv1" in line
    assert "in the plan" in line and "in the model" in line


def test_damaged_plan(refused: Refused, tiny: Path, trained: Path, tmp_path: Path) -> None:
    """Cut short, of another kind, or changed by hand: each is said of the file."""
    stem = copied(trained, tmp_path / "damaged", ".pdparams", ".plan.json")
    path = Path(f"{stem}.plan.json")
    text = path.read_text()
    plan = json.loads(text)
    tip = "neck.yolo_block.0.tip.conv.weight"
    for changed, said in (
        (text[: len(text) // 2], "cannot be read"),
        (json.dumps({**plan, "schema": "other/1"}), "schema is 'other/1'"),
        (json.dumps({**plan, "slices": []}), "'slices' is list, expected a mapping"),
        (json.dumps({**plan, "slices": {tip: {"0": [1, 0]}}}), f"kept channels of '{tip}'"),
        (json.dumps({**plan, "tensors": {tip: [9, 9, 9, 9]}}), "is damaged"),
    ):
        path.write_text(changed)
        line = refused("eval", "-c", tiny, *weights(stem))
        assert f"'{path}'" in line and said in line


def test_slim_file_that_contradicts_the_plan(
    refused: Refused, tiny: Path, trained: Path, r578: Path
) -> None:
    """Cut weights are not cut again in another way."""
    for name in ("prune_sensity.yml", "prune_fpgm.yml"):
        slim = r578.with_name(name)
        line = refused("eval", "-c", tiny, "--slim_config", slim, *weights(trained))
        assert "was already cut, with l1_norm," in line and str(slim) in line
        line = refused("train", "-c", tiny, "--slim_config", slim, "-r", trained)
        assert "was already cut, with l1_norm," in line


def test_nothing_to_verify(refused: Refused, tiny: Path, unpruned: Path) -> None:
    line = refused("verify", "-c", tiny, *weights(unpruned))
    assert f"'{unpruned}' are the weights of an unpruned model" in line and "--slim_config" in line


def test_resume_needs_the_optimizer(
    refused: Refused, tiny: Path, trained: Path, tmp_path: Path
) -> None:
    stem = copied(trained, tmp_path / "bare", ".pdparams", ".plan.json")
    line = refused("train", "-c", tiny, "-r", stem)
    assert f"optimizer state '{stem}.pdopt' does not exist" in line


@pytest.mark.parametrize("command", ["eval", "infer"])
def test_artifact_that_is_incomplete(
    refused: Refused, tiny: Path, shapes: Path, tmp_path: Path, command: str
) -> None:
    image = next((shapes / "images").iterdir())
    run = [command, "-c", tiny, "--artifact", tmp_path / "model"]
    run += ["--infer_img", image] if command == "infer" else []
    assert "has no model.pdmodel; expected a folder written by export" in refused(*run)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.pdmodel").write_bytes(b"")
    assert "has no model.pdiparams" in refused(*run)
