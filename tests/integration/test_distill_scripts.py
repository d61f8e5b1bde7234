"""Distillation as PaddleDetection writes it down, in scripts that know ppdet only."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
import yaml

from slim_det.training import session
from slim_det.training.config import load_config
from tests.commands import Outcome, command, done, files_below
from tests.support import restored_config

SCRIPT = Path(__file__).with_name("train_script.py")
ADDRESS = "https://no.such/models/teacher.pdparams"
LOSS = {"distill_loss": "DistillYOLOv3Loss", "DistillYOLOv3Loss": {"weight": 1000}}
TIPS = ["conv2d_32.w_0", "conv2d_39.w_0", "conv2d_46.w_0"]


def write(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def tensors(stem: Path) -> dict[str, np.ndarray]:
    return paddle.load(f"{stem}.pdparams", return_numpy=True)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, tiny: Path, ppdet_registered: None) -> Path:
    """A wider detector, with a reader and a schedule of its own; its weights are beside it."""
    folder = tmp_path_factory.mktemp("teacher")
    reader = yaml.safe_load(tiny.read_text())["TrainReader"]
    content = {
        "_BASE_": [str(tiny)],
        "MobileNet": {"scale": 0.5},
        "TrainReader": {**reader, "batch_size": 3},
        "LearningRate": {"base_lr": 7.0},
        "epoch": 99,
        "save_dir": str(folder / "never"),
    }
    config = write(folder / "teacher.yml", content)
    with restored_config():
        paddle.seed(0)
        state = session.build_model(load_config(config)).state_dict()
        paddle.save(state, str(folder / "teacher.pdparams"))
    return config


def historical(folder: Path, teacher: Path, weights: Any, **more: Any) -> Path:
    """A slim file whose base is the teacher's configuration."""
    content = {"_BASE_": [str(teacher)], "pretrain_weights": str(weights), **LOSS, **more}
    return write(folder / "slim.yml", content)


def train(tiny: Path, slim: Path, folder: Path, *settings: str, **variables: str) -> Outcome:
    arguments = ("--slim_config", slim, "-o", f"save_dir={folder}", *settings)
    variables = {"OMP_NUM_THREADS": "1", **variables}
    return command("-c", tiny, *arguments, script=SCRIPT, cwd=folder, **variables)


def test_teacher_as_the_base(teacher: Path, tiny: Path, unpruned: Path, tmp_path: Path) -> None:
    """Nothing of the teacher's reaches the student but what it says: no weights, no schedule."""
    weights = teacher.with_suffix(".pdparams")
    slim = historical(tmp_path, teacher, weights, slim="Distill")
    out = done(train(tiny, slim, tmp_path, f"pretrain_weights={unpruned}.pdparams")).out
    assert f"241 of 241 tensors from {unpruned}.pdparams" in out
    assert f"loaded 241 tensors from {weights}" in out
    assert "epoch 0: distill_split acts with weight 1000" in out
    # 16 images in batches of 8, a tenth of the rate of 0.003 to begin with, one epoch.
    steps = re.findall(r"Epoch: \[(\d+)\] \[(\d+)/(\d+)\] learning_rate: (\S+)", out)
    assert [step[:3] for step in steps] == [("0", "0", "2"), ("0", "1", "2")]
    assert float(steps[0][3]) == pytest.approx(0.0003)
    assert all(float(value) > 0.0 for value in re.findall(r"distill_split: (\S+)", out))
    saved = {path.name for path in (tmp_path / "tiny").iterdir()}
    assert saved == {"model_final.pdparams", "model_final.pdopt"}
    left, right = tensors(tmp_path / "tiny" / "model_final"), tensors(unpruned)
    assert {n: v.shape for n, v in left.items()} == {n: v.shape for n, v in right.items()}
    assert not (teacher.parent / "never").exists()


def test_cut_then_distilled(teacher: Path, tiny: Path, unpruned: Path, tmp_path: Path) -> None:
    """`DistillPrune`: the student is cut once its weights are there; the teacher stays unpruned."""
    weights = teacher.with_suffix(".pdparams")
    pruner = {"criterion": "l1_norm", "pruned_params": TIPS, "pruned_ratios": [0.5, 0.7, 0.8]}
    more = {"slim": "DistillPrune", "pruner": "Pruner", "Pruner": pruner}
    slim = historical(tmp_path, teacher, weights, **more)
    out = done(train(tiny, slim, tmp_path, f"pretrain_weights={unpruned}.pdparams")).out
    order = ("241 of 241 tensors", "pruned 3 groups", f"loaded 241 tensors from {weights}")
    assert sorted(order, key=out.index) == [*order]
    stem = tmp_path / "tiny" / "model_final"
    name = "neck.yolo_block.2.tip.conv.weight"
    assert tensors(stem)[name].shape[0] < tensors(unpruned)[name].shape[0]
    assert Path(f"{stem}.plan.json").is_file()


def test_weights_at_an_address(teacher: Path, tiny: Path, tmp_path: Path) -> None:
    """One line without a network; then what was downloaded before, then what `-o` names."""
    slim = historical(tmp_path, teacher, ADDRESS, slim="Distill")
    home = {"HOME": str(tmp_path / "home")}
    kept = tmp_path / "home" / ".cache" / "paddle" / "weights" / "teacher.pdparams"
    kept.parent.mkdir(parents=True)
    run = train(tiny, slim, tmp_path, **home)
    assert run.code == 2 and len(run.err.splitlines()) == 1, run.err
    assert f"Distill.teacher: weights '{ADDRESS}' cannot be downloaded: " in run.err
    assert not (tmp_path / "tiny").exists()
    weights = teacher.with_suffix(".pdparams")
    out = done(train(tiny, slim, tmp_path, f"Distill.teacher.weights={weights}", **home)).out
    assert f"loaded 241 tensors from {weights}" in out
    shutil.copy(weights, kept)
    out = done(train(tiny, slim, tmp_path, **home)).out
    assert f"'{ADDRESS}' cannot be reached; '{kept}' is used, unchecked" in out
    assert f"loaded 241 tensors from {kept}" in out


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"distill_loss": "DistillYOLOLoss"}, "distill_loss: unknown loss 'DistillYOLOLoss'; did"),
        ({"pretrain_weights": None}, "Distill.teacher.weights is missing"),
        ({"num_classes": 5}, "num_classes is 5"),
        ({"YOLOv3Head": {"anchors": [[9, 9]] * 9}}, "anchors: [[["),
    ],
)
def test_files_that_are_wrong(
    teacher: Path, tiny: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    """Exit code 2, one line, and nothing is written."""
    weights = teacher.with_suffix(".pdparams")
    slim = historical(tmp_path, teacher, weights, slim="Distill")
    write(slim, {**yaml.safe_load(slim.read_text()), **changes})
    before = files_below(tmp_path)
    run = train(tiny, slim, tmp_path)
    assert run.code == 2 and len(run.err.splitlines()) == 1, run.err
    assert said in run.err
    assert files_below(tmp_path) == before
