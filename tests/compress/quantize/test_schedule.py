"""Ranges and batch norms freeze when they should, and are given back."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import paddle
import pytest
from paddle.utils import unique_name

from slim_det.compress.quantize.model import quantize_model, quantized_layers
from slim_det.compress.quantize.record import QuantLayer, QuantRecord
from slim_det.compress.quantize.schedule import QuantSchedule
from slim_det.compress.quantize.settings import read_quant_config
from slim_det.core.errors import ConfigError, TrainingError
from tests.compress.distill.tiny_detectors import (
    TinyDetector,
    arrays,
    make_batch,
    same,
    tiny_detector,
)
from tests.support import assert_same_sums

STEPS = 2
LAYERS = [QuantLayer("backbone", norm="backbone.bn"), QuantLayer("neck.tips.1")]
PRE = {"activation_preprocess_type": "LSQ", "weight_preprocess_type": "LSQ"}


def quantized(config: dict[str, Any] | None = None, **origin: Any) -> TinyDetector:
    model = tiny_detector(1)
    record = QuantRecord(read_quant_config(config), LAYERS, {}, origin)
    quantize_model(model, record, {"backbone": 2.0, "neck.tips.1": 1.0})
    return model


class FakeTrainer:
    """Trains as ppdet's Trainer does; notes ranges and statistics before every epoch."""

    def __init__(self, model: TinyDetector, epochs: int = 4, **cfg: Any) -> None:
        self.cfg, self.model = SimpleNamespace(epoch=epochs, snapshot_epoch=1, **cfg), model
        self.hook = QuantSchedule(self)
        self.optimizer = paddle.optimizer.Momentum(0.05, 0.9, parameters=model.parameters())
        self.ranges: list[list[float]] = []
        self.means: list[np.ndarray] = []

    def note(self) -> None:
        layers = quantized_layers(self.model).values()
        self.ranges.append([layer.activation.range() for layer in layers])
        self.means.append(self.model.backbone.bn._mean.numpy().copy())

    def train(self, start: int = 0) -> None:
        status: dict[str, Any] = {}
        self.hook.on_train_begin(status)
        for epoch in range(start, self.cfg.epoch):
            status.update(mode="train", epoch_id=epoch)
            self.note()
            self.hook.on_epoch_begin(status)
            self.model.train()
            for step in range(STEPS):
                self.hook.on_step_begin({**status, "step_id": step})
                self.model(make_batch(10 * epoch + step))["loss"].backward()
                with unique_name.guard():
                    self.optimizer.step()
                self.optimizer.clear_grad()
            self.hook.on_epoch_end(status)
            self.model.eval()
            self.model(make_batch())
        self.note()
        self.hook.on_train_end(status)


def moved(values: list[Any]) -> list[bool]:
    """Whether each epoch has changed a value."""
    return [not np.array_equal(left, right) for left, right in zip(values, values[1:])]


@pytest.mark.parametrize("config", [None, PRE])
def test_nothing_freezes_by_default(config: dict[str, Any] | None) -> None:
    trainer = FakeTrainer(quantized(config))
    trainer.train()
    assert moved(trainer.ranges) == moved(trainer.means) == [True] * 4


@pytest.mark.parametrize("config", [None, PRE])
def test_each_freezes_in_its_epoch(
    config: dict[str, Any] | None, caplog: pytest.LogCaptureFixture
) -> None:
    """Through evaluations and the Trainer's own `train()`; each is logged once."""
    trainer = FakeTrainer(quantized(config, freeze_epoch=1, freeze_bn_epoch=3))
    with caplog.at_level(logging.INFO, "slim_det"):
        trainer.train()
    assert moved(trainer.ranges) == [True, False, False, False]
    assert moved(trainer.means) == [True, True, True, False]
    assert [r.getMessage() for r in caplog.records] == [
        "epoch 1: ranges are frozen",
        "epoch 3: batch norms keep their running statistics",
    ]


def test_learned_weight_ranges_freeze_too() -> None:
    model = quantized(PRE, freeze_epoch=0)
    before = [layer.weights.steps.numpy().copy() for layer in quantized_layers(model).values()]
    weight = model.backbone.conv.weight.numpy().copy()
    FakeTrainer(model, epochs=1).train()
    after = [layer.weights.steps.numpy() for layer in quantized_layers(model).values()]
    assert all(np.array_equal(left, right) for left, right in zip(before, after))
    assert not np.array_equal(weight, model.backbone.conv.weight.numpy())


def test_frozen_batch_norm_computes_as_deployed() -> None:
    """The training loss is that of evaluation, and its scale and shift still learn."""
    model = quantized(freeze_epoch=0, freeze_bn_epoch=0)
    trainer = FakeTrainer(model)
    trainer.hook.before_train_epoch({"epoch_id": 0})
    model.eval()
    feature = model.backbone(make_batch()).numpy()
    model.train()
    out = model.backbone(make_batch())
    assert_same_sums(out.numpy(), feature)
    out.square().sum().backward()
    assert np.abs(model.backbone.bn.weight.grad.numpy()).max() > 0.0


def test_everything_is_given_back() -> None:
    model = quantized(freeze_epoch=0, freeze_bn_epoch=0)
    trainer = FakeTrainer(model, epochs=1)
    trainer.train()
    assert model.backbone.bn._use_global_stats is None
    assert not any(layer.activation.frozen for layer in quantized_layers(model).values())
    model.train()
    before = model.backbone.bn._mean.numpy().copy()
    model(make_batch())
    assert not np.array_equal(before, model.backbone.bn._mean.numpy())


@pytest.mark.parametrize("config", [None, PRE])
def test_a_resumed_training_ends_at_the_same_weights(config: dict[str, Any] | None) -> None:
    """To the last bit, with a freeze before and one after the interruption."""
    times = {"freeze_epoch": 1, "freeze_bn_epoch": 3}
    complete, first, second = (FakeTrainer(quantized(config, **times)) for _ in range(3))
    complete.train()
    first.cfg.epoch = 2
    first.train()
    second.model.set_state_dict(arrays(first.model))
    second.optimizer.set_state_dict(first.optimizer.state_dict())
    second.train(start=2)
    assert same(arrays(complete.model), arrays(second.model))


def test_a_lost_range_stops_the_training() -> None:
    model = quantized()
    trainer = FakeTrainer(model, epochs=1)
    trainer.train()
    quantized_layers(model)["neck.tips.1"].activation.limit.set_value(
        np.asarray([np.nan], "float32")
    )
    with pytest.raises(TrainingError, match=r"epoch 3: the range of 'neck\.tips\.1' is not finite"):
        trainer.hook.on_epoch_end({"mode": "train", "epoch_id": 3})


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the model is not quantized"):
        FakeTrainer(tiny_detector(1))
    with pytest.raises(ConfigError, match="leave to_static out") as caught:
        FakeTrainer(quantized(), to_static=True)
    assert "\n" not in str(caught.value)
