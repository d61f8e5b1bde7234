"""What replaces parts of ppdet's Trainer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from slim_det.core.errors import DataError, TrainingError
from slim_det.training import ppdet_patches
from slim_det.training.finite_training import FiniteTraining
from tests.compress.distill.tiny_detectors import tiny_detector


def trained(monkeypatch: pytest.MonkeyPatch, error: Exception, weight: float = 1.0) -> Any:
    """Run a training that ends with an error, of a model with such a weight."""
    model = tiny_detector(1)
    parameter = model.backbone.conv.weight
    parameter.set_value(np.full(parameter.shape, weight, "float32"))
    trainer = SimpleNamespace(model=model, cfg=SimpleNamespace())
    hook = FiniteTraining(trainer)
    hook.on_train_begin({"epoch_id": 0, "step_id": 2})
    trainer._callbacks = [hook]

    def fail(*arguments: Any) -> None:
        raise error

    monkeypatch.setattr(ppdet_patches, "_train_of_ppdet", fail)
    return ppdet_patches._train(trainer, False)


def test_an_error_of_nan_names_the_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TrainingError, match="^epoch 0, step 2: 'backbone.conv.weight' is not fin"):
        trained(monkeypatch, ValueError("x must be in [0, 1]"), np.nan)


def test_annotations_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="^TrainDataset gives no 'gt_poly', from which Tiny"):
        trained(monkeypatch, KeyError("gt_poly"))


@pytest.mark.parametrize("error", [KeyError("other"), KeyError(), ValueError("x")])
def test_any_other_error_stays_what_it_is(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    with pytest.raises(type(error)) as caught:
        trained(monkeypatch, error)
    assert caught.value is error
