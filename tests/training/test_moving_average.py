"""Constants of a model stay out of ppdet's moving average."""

from __future__ import annotations

from types import SimpleNamespace

import paddle
from ppdet.optimizer import ModelEMA

from slim_det.training.ppdet_patches import _keep_constants


class Head(paddle.nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.fc = paddle.nn.Linear(2, 2)
        self.register_buffer("positions", paddle.to_tensor([0.0, 1.0, 2.0]))


def test_constants_are_not_averaged() -> None:
    model = Head()
    average = ModelEMA(model, 0.9998)
    _keep_constants(SimpleNamespace(use_ema=True, ema=average, model=model))
    for _ in range(3):
        average.update()
    assert average.apply()["positions"].tolist() == [0.0, 1.0, 2.0]
    before = average.apply()["fc.weight"].numpy()
    model.fc.weight.set_value(model.fc.weight + 1.0)
    average.update()
    assert abs(average.apply()["fc.weight"].numpy() - before).max() > 0.01


def test_without_an_average_nothing_is_done() -> None:
    _keep_constants(SimpleNamespace(use_ema=False))
