"""Which checkpoints a training leaves, and what it knows of the best one."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import paddle
import pytest

from slim_det.compress.prune.plan import Plan, apply_plan
from slim_det.compress.tensors import tensor_shapes
from slim_det.training import checkpoint_saver
from slim_det.training.checkpoint_saver import CheckpointSaver, metric_value


class Config(SimpleNamespace):
    """Settings by attribute, as ppdet's are."""


class Metric:
    """A metric of ppdet: the first number of its first result counts."""

    def __init__(self, ap: float | None) -> None:
        self.results = {} if ap is None else {"bbox": [ap, 0.9, 0.1]}

    def get_results(self) -> dict[str, list[float]]:
        return self.results


def make_trainer(folder: Path, ap: float | None = 0.5, start: int = 0, **more: Any) -> Any:
    model = more.pop("model", None) or paddle.nn.Linear(2, 3)
    return SimpleNamespace(
        cfg=Config(save_dir=str(folder), filename="run", epoch=5, snapshot_epoch=2),
        model=model,
        optimizer=paddle.optimizer.Momentum(0.1, 0.9, parameters=model.parameters()),
        start_epoch=start,
        use_ema=False,
        _metrics=[Metric(ap)],
        **more,
    )


def evaluated(saver: CheckpointSaver, epoch: int, ap: float | None, **status: Any) -> None:
    saver.trainer._metrics = [Metric(ap)]
    saver.on_epoch_end({"mode": "eval", "epoch_id": epoch, "save_best_model": True, **status})


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


def best(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run" / "best_model.json").read_text())


def test_snapshots_carry_ppdets_names(tmp_path: Path) -> None:
    """Every second epoch under its number, the last one as model_final."""
    saver = CheckpointSaver(make_trainer(tmp_path))
    saved = []
    for epoch in range(5):
        before = names(tmp_path)
        saver.on_epoch_end({"mode": "train", "epoch_id": epoch})
        saved.append({Path(name).stem for name in names(tmp_path) - before})
    assert saved == [set(), {"1"}, set(), {"3"}, {"model_final"}]
    assert all(not name.startswith(".") for name in names(tmp_path))
    state = paddle.load(str(tmp_path / "run" / "3.pdopt"))
    assert state["last_epoch"] == 4


def test_plan_is_saved_beside(tmp_path: Path) -> None:
    model = paddle.nn.Linear(2, 3)
    slices = {"weight": {1: np.array([0, 2])}, "bias": {0: np.array([0, 2])}}
    apply_plan(model, Plan("Linear", tensor_shapes(model), (32, 32), {}, {}, {}, slices))
    saver = CheckpointSaver(make_trainer(tmp_path, model=model))
    saver.on_epoch_end({"mode": "train", "epoch_id": 1})
    assert names(tmp_path) == {"1.pdparams", "1.pdopt", "1.plan.json"}
    evaluated(saver, 1, 0.5)
    assert {"best_model.pdparams", "best_model.plan.json"} <= names(tmp_path)


def test_best_model_is_replaced_by_one_at_least_as_good(tmp_path: Path) -> None:
    saver = CheckpointSaver(make_trainer(tmp_path))
    history = []
    for epoch, ap in enumerate([0.3, 0.2, 0.4, 0.4, 0.1]):
        evaluated(saver, epoch, ap)
        history.append((best(tmp_path)["epoch"], best(tmp_path)["ap"]))
    assert history == [(0, 0.3), (0, 0.3), (2, 0.4), (3, 0.4), (3, 0.4)]


def test_no_boxes_count_as_zero(tmp_path: Path) -> None:
    """Saved where nothing better is known, and never over something better."""
    saver = CheckpointSaver(make_trainer(tmp_path))
    evaluated(saver, 0, None)
    assert best(tmp_path) == {"ap": 0.0, "epoch": 0}
    evaluated(saver, 1, 0.1)
    evaluated(saver, 2, None)
    assert best(tmp_path) == {"ap": 0.1, "epoch": 1}
    assert metric_value(Metric(None)) == 0.0 and metric_value(Metric(0.25)) == 0.25


def test_resumed_run_knows_its_best(tmp_path: Path) -> None:
    """A new run starts without; a resumed one does not replace a better model."""
    evaluated(CheckpointSaver(make_trainer(tmp_path)), 1, 0.6)
    resumed = CheckpointSaver(make_trainer(tmp_path, start=2))
    evaluated(resumed, 2, 0.5)
    assert best(tmp_path) == {"ap": 0.6, "epoch": 1}
    evaluated(resumed, 3, 0.7)
    assert best(tmp_path) == {"ap": 0.7, "epoch": 3}
    evaluated(CheckpointSaver(make_trainer(tmp_path, start=0)), 0, 0.1)
    assert best(tmp_path) == {"ap": 0.1, "epoch": 0}


def cut(model: paddle.nn.Layer, kept: list[int]) -> None:
    """Prune a linear layer with three outputs, once more or for the first time."""
    slices = {"weight": {1: np.array(kept)}, "bias": {0: np.array(kept)}}
    apply_plan(model, Plan("Linear", tensor_shapes(model), (32, 32), {}, {}, {}, slices))


def test_a_smaller_model_is_not_measured_against_a_larger_one(tmp_path: Path) -> None:
    """A model that is cut in training has another best; so it has when it is resumed."""
    trainer = make_trainer(tmp_path)
    cut(trainer.model, [0, 2])
    saver = CheckpointSaver(trainer)
    evaluated(saver, 0, 0.6)
    cut(trainer.model, [1])
    for epoch, ap in ((1, 0.3), (2, 0.2), (3, 0.4)):
        evaluated(saver, epoch, ap)
        assert best(tmp_path)["ap"] == max(ap, 0.3)
    plan = json.loads((tmp_path / "run" / "best_model.plan.json").read_text())
    assert plan["slices"]["bias"] == {"0": [1]}
    same, larger = paddle.nn.Linear(2, 2), paddle.nn.Linear(2, 3)
    cut(same, [1])
    evaluated(CheckpointSaver(make_trainer(tmp_path, start=4, model=same)), 4, 0.3)
    assert best(tmp_path) == {"ap": 0.4, "epoch": 3}
    cut(larger, [0])
    for model in (larger, paddle.nn.Linear(2, 3)):
        evaluated(CheckpointSaver(make_trainer(tmp_path, start=4, model=model)), 4, 0.1)
        assert best(tmp_path) == {"ap": 0.1, "epoch": 4}


def test_evaluation_by_itself_saves_nothing(tmp_path: Path) -> None:
    saver = CheckpointSaver(make_trainer(tmp_path))
    saver.on_epoch_end({"mode": "eval", "epoch_id": 0})
    assert names(tmp_path) == set()


def test_other_processes_save_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saver = CheckpointSaver(make_trainer(tmp_path))
    monkeypatch.setattr(checkpoint_saver.CheckpointSaver, "is_main_process", False)
    saver.on_epoch_end({"mode": "train", "epoch_id": 4})
    evaluated(saver, 4, 0.5)
    assert names(tmp_path) == set()


def test_average_is_saved_as_the_weights(tmp_path: Path) -> None:
    """ppdet has put the average into the model when hooks are called."""
    trainer = make_trainer(tmp_path)
    trainer.use_ema = True
    trained = {name: value + 1.0 for name, value in trainer.model.state_dict().items()}
    saver = CheckpointSaver(trainer)
    saver.on_epoch_end({"mode": "train", "epoch_id": 1, "weight": trained})
    average, kept = (
        paddle.load(str(tmp_path / "run" / f"1{suffix}"), return_numpy=True)
        for suffix in (".pdparams", ".pdema")
    )
    assert np.array_equal(average["weight"], trainer.model.weight.numpy())
    assert np.array_equal(kept["weight"], average["weight"] + 1.0)
