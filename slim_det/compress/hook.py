"""The base of all hooks, which distinguishes training from evaluation."""

from __future__ import annotations

from typing import Any, ClassVar

import paddle.distributed as dist
from ppdet.engine.callbacks import Callback

from slim_det.core.errors import ConfigError


class Hook(Callback):
    """A ppdet callback with separate methods for training and evaluation.

    ppdet calls the same methods in both and distinguishes them by ``status['mode']``, which is
    sometimes missing or out of date. Hooks override the methods below and never read it.

    Args:
        trainer: ppdet's Trainer.

    Attributes:
        measures_start: Whether it evaluates the model itself before the first epoch.
    """

    measures_start: ClassVar[bool] = False

    def __init__(self, trainer: Any) -> None:
        super().__init__(trainer)
        self.trainer = trainer
        self._finished_epoch: int | None = None

    @property
    def is_main_process(self) -> bool:
        """Whether this process prints and saves."""
        return dist.get_world_size() < 2 or dist.get_rank() == 0

    def refuse_to_static(self, reason: str) -> None:
        """Raise a `ConfigError` with this reason where the training is to be compiled."""
        if getattr(self.trainer.cfg, "to_static", False):
            raise ConfigError(f"{reason}; leave to_static out")

    def snapshot_name(self, status: dict[str, Any]) -> str | None:
        """Name of the checkpoint that is due after a training epoch, if any.

        It is the epoch's number every ``snapshot_epoch`` epochs, and ``model_final`` at the end.
        """
        done, cfg = status["epoch_id"] + 1, self.trainer.cfg
        if done == cfg.epoch:
            return "model_final"
        return str(done - 1) if done % cfg.snapshot_epoch == 0 else None

    def on_train_begin(self, status: dict[str, Any]) -> None:
        """Called by ppdet; dispatches."""
        self._finished_epoch = None
        self.before_training(status)

    def on_epoch_begin(self, status: dict[str, Any]) -> None:
        """Called by ppdet; dispatches.

        Before the evaluation after a training epoch, the mode is still that of training.
        """
        if status.get("mode") == "train" and status.get("epoch_id") != self._finished_epoch:
            self.before_train_epoch(status)

    def on_step_begin(self, status: dict[str, Any]) -> None:
        """Called by ppdet; dispatches."""
        if status.get("mode") == "train":
            self.before_train_step(status)

    def on_step_end(self, status: dict[str, Any]) -> None:
        """Called by ppdet; dispatches."""
        if status.get("mode") == "train":
            self.after_train_step(status)

    def on_epoch_end(self, status: dict[str, Any]) -> None:
        """Called by ppdet; dispatches."""
        if status.get("mode") == "train":
            self._finished_epoch = status.get("epoch_id")
            self.after_train_epoch(status)
        elif status.get("mode") == "eval":
            self.after_evaluation(status)

    def before_training(self, status: dict[str, Any]) -> None:
        """Before the first epoch, after a checkpoint to resume was loaded."""

    def before_train_epoch(self, status: dict[str, Any]) -> None:
        """Before the first step of a training epoch."""

    def before_train_step(self, status: dict[str, Any]) -> None:
        """Before the forward pass of a training step."""

    def after_train_step(self, status: dict[str, Any]) -> None:
        """After the optimizer's step; ``learning_rate`` is the one that it used."""

    def after_train_epoch(self, status: dict[str, Any]) -> None:
        """After the last step of a training epoch, before any evaluation."""

    def after_evaluation(self, status: dict[str, Any]) -> None:
        """After an evaluation, its metrics accumulated."""
