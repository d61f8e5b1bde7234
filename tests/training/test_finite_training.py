"""A training stops before it uses or saves numbers that are not finite."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from slim_det.core.errors import TrainingError
from slim_det.training.finite_training import FiniteTraining
from tests.commands import Outcome
from tests.compress.distill.tiny_detectors import distilled, make_batch, tiny_detector


def started(model: Any, **cfg: Any) -> FiniteTraining:
    """The hook, in the second step of the fourth epoch."""
    model.train()
    hook = FiniteTraining(SimpleNamespace(model=model, cfg=SimpleNamespace(**cfg)))
    hook.on_train_begin({"epoch_id": 3, "step_id": 1})
    return hook


def fill(model: Any, name: str, value: float) -> None:
    parameter = dict(model.named_parameters())[name]
    parameter.set_value(np.full(parameter.shape, value, "float32"))


@pytest.mark.parametrize(
    ("value", "cfg", "culprit"),
    [
        (np.nan, {}, "'yolo_head.yolo_output.1' is nan"),
        (np.nan, {"to_static": True}, "loss_1 is nan"),
        (1e30, {}, "loss_1 is infinite"),
    ],
)
def test_it_names_epoch_step_and_culprit(value: float, cfg: dict[str, Any], culprit: str) -> None:
    """A raw output before ppdet's loss, unless layers are compiled; or a part of the loss."""
    model = tiny_detector(1)
    started(model, **cfg)
    model(make_batch())["loss"].backward()
    model.clear_gradients()
    fill(model, "yolo_head.yolo_output.1.bias", value)
    with pytest.raises(TrainingError, match=f"^epoch 3, step 1: {culprit}; the last ") as error:
        model(make_batch())
    assert "\n" not in str(error.value) and "learning rate" in str(error.value)


def test_only_training_is_watched() -> None:
    """A model that is evaluated, or whose training has ended, may give what it likes."""
    model = tiny_detector(1)
    hook = started(model)
    fill(model, "yolo_head.yolo_output.1.bias", np.nan)
    model.eval()
    model(make_batch())
    model.train()
    hook.on_train_end({})
    assert np.isnan(float(model(make_batch())["loss"]))


def test_an_error_of_a_kernel_is_one_of_weights_if_they_are_not_finite() -> None:
    """As of losses that refuse NaN; any other error stays what it is."""
    model = tiny_detector(1)
    hook = started(model)
    hook.explain(ValueError("x must be in [0, 1]"))
    fill(model, "backbone.conv.weight", np.nan)
    hook.explain(TrainingError("its own line"))
    with pytest.raises(TrainingError, match="^epoch 3, step 1: 'backbone.conv.weight' is not"):
        hook.explain(ValueError("x must be in [0, 1]"))


@pytest.mark.parametrize("has_teacher", [False, True])
def test_weights_that_are_not_finite_are_not_saved(has_teacher: bool) -> None:
    """After the last step of an epoch, which no loss has seen; with a distillation too."""
    model = tiny_detector(1)
    if has_teacher:
        distilled(model, tiny_detector(2), "l2", 1.0)
    hook = started(model)
    hook.on_epoch_end({"mode": "train", "epoch_id": 2})
    fill(model, "neck.tips.1.bias", np.inf)
    with pytest.raises(TrainingError, match=r"epoch 3: 'neck\.tips\.1\.bias' is not finite"):
        hook.on_epoch_end({"mode": "train", "epoch_id": 3})


@pytest.mark.parametrize(
    ("rate", "batch_size", "said"),
    [
        ("1.0e+30", 4, r"epoch 0, step 1: 'yolo_head\.yolo_output\.0' is nan; the last checkpoint"),
        (
            "1.0e+39",
            16,
            "epoch 0: '[a-z].*' is not finite after the last step; the last checkpoint",
        ),
    ],
)
def test_a_plain_training(
    cli: Callable[..., Outcome], tiny: Path, tmp_path: Path, rate: str, batch_size: int, said: str
) -> None:
    """Without a slim file, in the second step or after the only one; nothing is saved."""
    schedule = "LearningRate.schedulers=[{name: CosineDecay, use_warmup: false, max_epochs: 99}]"
    overrides = (schedule, f"LearningRate.base_lr={rate}", f"save_dir={tmp_path}")
    overrides += (f"TrainReader.batch_size={batch_size}",)
    run = cli("train", "-c", tiny, "--seed", 0, "-o", *overrides)
    assert run.code == 2, run.out + run.err
    (line,) = run.err.splitlines()
    assert re.match(f"slim-det train: error: {said} stays as it was; .*learning rate$", line), line
    assert not list(tmp_path.rglob("*.pdparams"))
