"""Epochs, steps and auxiliary modules of a distillation, trained as ppdet trains."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import paddle
import pytest
from paddle.utils import unique_name

from slim_det.compress.distill.schedule import DistillSchedule
from slim_det.core.errors import ConfigError
from slim_det.training.checkpoint_saver import CheckpointSaver
from tests.compress.distill.tiny_detectors import (
    arrays,
    distilled,
    make_batch,
    pair,
    same,
    tiny_detector,
)

STEPS = 2
RATE = 0.05


@pytest.fixture(autouse=True)
def _config(fresh_config: Any) -> None:
    """ppdet's own optimizer settings."""


class FakeTrainer:
    """Trains a student as ppdet's Trainer does, with an evaluation after every epoch."""

    def __init__(self, folder: Path, model: Any, epochs: int = 3, **cfg: Any) -> None:
        settings = {"save_dir": str(folder), "filename": "run", "snapshot_epoch": 2, **cfg}
        self.cfg = SimpleNamespace(epoch=epochs, **settings)
        self.model, self.use_amp = model, bool(cfg.get("amp"))
        self.use_ema = False
        self.seen: list[tuple[int, int, float]] = []
        self.hook, self.saver = DistillSchedule(self), CheckpointSaver(self)
        self.optimizer = paddle.optimizer.Momentum(RATE, 0.9, parameters=model.parameters())

    def train(self, start: int = 0) -> None:
        status: dict[str, Any] = {}
        self.hook.on_train_begin(status)
        for epoch in range(start, self.cfg.epoch):
            status.update(mode="train", epoch_id=epoch)
            self.hook.on_epoch_begin(status)
            self.model.train()
            for step in range(STEPS):
                status["step_id"] = step
                self.hook.on_step_begin(status)
                self._step(epoch, step)
                status["learning_rate"] = RATE
                self.hook.on_step_end(status)
            self.hook.on_epoch_end(status)
            self.saver.on_epoch_end(status)
            self.hook.on_epoch_begin(status)
            status["mode"] = "eval"
            self.model.eval()
            self.hook.on_step_begin({**status, "step_id": 99})
            self.model(make_batch())
            self.hook.on_step_end({**status, "learning_rate": 1e9})
            self.hook.on_epoch_end(status)

    def _step(self, epoch: int, step: int) -> None:
        losses = self.model(make_batch(10 * epoch + step))
        distiller = self.hook.distiller
        self.seen.append((distiller.epoch, distiller.step, losses["loss"].item()))
        losses["loss"].backward()
        with unique_name.guard():
            self.optimizer.step()
        self.optimizer.clear_grad()


def auxiliary_modules(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*.companions.pdparams"))


def test_a_model_without_a_teacher_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the model has no teacher"):
        FakeTrainer(tmp_path, tiny_detector(1))


def test_epoch_and_step_are_set(tmp_path: Path) -> None:
    student = tiny_detector(1)
    distilled(student, tiny_detector(2), "l2", 1.0)
    trainer = FakeTrainer(tmp_path, student)
    trainer.train(start=1)
    assert [seen[:2] for seen in trainer.seen] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert auxiliary_modules(tmp_path) == []


def test_the_teacher_runs_in_its_epochs_only(tmp_path: Path) -> None:
    student, teacher = tiny_detector(1), tiny_detector(2)
    distilled(student, teacher, "l2", 1.0, start_epoch=1, end_epoch=2)
    before, weights = teacher.runs["backbone"], arrays(teacher)
    FakeTrainer(tmp_path, student).train()
    assert teacher.runs["backbone"] - before == STEPS
    assert same(weights, arrays(teacher))


def test_changes_of_weight_are_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    student = tiny_detector(1)
    pairs = [pair("feature_l2", weight=2.0, end_epoch=None, ramp_epochs=0, start_epoch=0)]
    times = {"start_epoch": 1, "end_epoch": 4, "ramp_epochs": 1}
    distilled(student, tiny_detector(2), "l2", 8.0, pairs=pairs, **times)
    with caplog.at_level(logging.INFO, "slim_det"):
        FakeTrainer(tmp_path, student, epochs=6).train()
    said = [r.getMessage() for r in caplog.records if r.filename == "schedule.py"]
    assert said == [
        "epoch 0: distill_l2 starts in epoch 1",
        "epoch 0: distill_feature_l2 acts with weight 2",
        "epoch 1: distill_l2 acts with weight 4 and grows to 8",
        "epoch 2: distill_l2 grows to weight 8 of 8",
        "epoch 4: distill_l2 acts no more",
    ]


def test_auxiliary_modules_learn_and_are_saved(tmp_path: Path) -> None:
    """Under the checkpoints' names: every second epoch, and the last one."""
    student, teacher = tiny_detector(1), tiny_detector(2, width=6)
    distiller = distilled(student, teacher, None, pairs=[pair("feature_l2")])
    before = arrays(distiller.auxiliary_modules.layer)
    FakeTrainer(tmp_path, student).train()
    after = arrays(distiller.auxiliary_modules.layer)
    assert not same(before, after)
    assert all(np.isfinite(value).all() for value in after.values()), "a rate of evaluation"
    assert auxiliary_modules(tmp_path) == [
        "1.companions.pdparams",
        "model_final.companions.pdparams",
    ]


def test_other_processes_save_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = tiny_detector(1), tiny_detector(2, width=6)
    distilled(student, teacher, None, pairs=[pair("feature_l2")])
    monkeypatch.setattr(CheckpointSaver, "is_main_process", False)
    FakeTrainer(tmp_path, student, epochs=1).train()
    assert auxiliary_modules(tmp_path) == []


def test_a_resumed_training_ends_at_the_same_weights(tmp_path: Path) -> None:
    def start(folder: str) -> FakeTrainer:
        student = tiny_detector(1)
        distilled(student, tiny_detector(2), "dml", start_epoch=0, ramp_epochs=2)
        return FakeTrainer(tmp_path / folder, student, epochs=4)

    straight, first, second = start("a"), start("b"), start("c")
    straight.train()
    first.cfg.epoch = 2
    first.train()
    second.model.set_state_dict(arrays(first.model))
    second.optimizer.set_state_dict(first.optimizer.state_dict())
    second.hook.distiller.resume(tmp_path / "b" / "run" / "model_final")
    second.train(start=2)
    assert same(arrays(straight.model), arrays(second.model))
    assert same(arrays(straight.hook.distiller.teacher), arrays(second.hook.distiller.teacher))


def test_mixed_precision_with_auxiliary_modules(tmp_path: Path) -> None:
    """Only where ppdet scales the loss, on a GPU."""
    student, teacher = tiny_detector(1), tiny_detector(2, width=6)
    distilled(student, teacher, None, pairs=[pair("feature_l2")])
    FakeTrainer(tmp_path, student, amp=True, use_gpu=False)
    with pytest.raises(ConfigError, match="leave --amp out") as error:
        FakeTrainer(tmp_path, student, amp=True, use_gpu=True)
    assert "\n" not in str(error.value)


def test_compiled_training_is_refused(tmp_path: Path) -> None:
    """Layers of a compiled student cannot be tapped."""
    student = tiny_detector(1)
    distilled(student, tiny_detector(2), "l2")
    with pytest.raises(ConfigError, match="leave to_static out") as error:
        FakeTrainer(tmp_path, student, to_static=True)
    assert "\n" not in str(error.value)
