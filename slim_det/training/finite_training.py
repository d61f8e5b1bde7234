"""Stops a training whose losses or weights are no longer finite."""

from __future__ import annotations

from typing import Any

import paddle
from paddle import Tensor
from paddle.nn import Layer

from slim_det.compress.distill.distiller import distiller_of
from slim_det.compress.finite import require_finite, watch_outputs
from slim_det.compress.hook import Hook
from slim_det.core.errors import SlimDetError, TrainingError

REMEDY = "a smaller learning rate"


class FiniteTraining(Hook):
    """Checks losses before the optimizer uses them, and weights before they are saved.

    A distiller checks the losses itself, with its own terms. Some kernels of losses refuse NaN, and
    say nothing of weights (see `explain`).
    """

    def __init__(self, trainer: Any) -> None:
        super().__init__(trainer)
        self._model = trainer.model
        self._status: dict[str, Any] = {}
        self._handles: list[Any] = []

    def before_training(self, status: dict[str, Any]) -> None:
        """Attach the checks of losses to the model."""
        self._status = status
        if distiller_of(self._model) is not None:
            return
        self._handles = [self._model.register_forward_post_hook(self._check_losses)]
        if not getattr(self.trainer.cfg, "to_static", False):  # then inner layers are compiled
            self._handles += watch_outputs(self._model, self._check_output)

    def after_train_epoch(self, status: dict[str, Any]) -> None:
        """Stop before a checkpoint is saved that could not be loaded.

        The losses are checked before each step, which does not cover the last one.

        Raises:
            TrainingError: A tensor of the model holds values that are not finite.
        """
        self._require_weights(f"epoch {status['epoch_id']}")

    def on_train_end(self, status: dict[str, Any]) -> None:
        """Called by ppdet; leaves the model as it was."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def explain(self, error: Exception) -> None:
        """Turn an error of a step into one about the weights, if they are not finite.

        Args:
            error: Any error that ended the training.

        Raises:
            TrainingError: A tensor of the model holds values that are not finite.
        """
        if self._status and not isinstance(error, SlimDetError):
            self._require_weights(self._where)

    def _require_weights(self, where: str) -> None:
        for name, value in self._model.state_dict().items():
            if not bool(paddle.isfinite(value).all()):
                raise TrainingError(
                    f"{where}: '{name}' is not finite after the last step; the last checkpoint "
                    f"stays as it was; try {REMEDY}"
                )

    @property
    def _where(self) -> str:
        return f"epoch {self._status['epoch_id']}, step {self._status['step_id']}"

    def _check_losses(self, model: Layer, inputs: Any, outputs: Any) -> None:
        if model.training and isinstance(outputs, dict) and "loss" in outputs:
            self._require(outputs["loss"], outputs)

    def _check_output(self, path: str, output: Tensor) -> None:
        self._require(output, {f"'{path}'": output})

    def _require(self, total: Tensor, parts: dict[str, Tensor]) -> None:
        require_finite(total, parts, self._where, REMEDY)
