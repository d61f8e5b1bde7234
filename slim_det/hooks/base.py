"""The base of all hooks: tells training from evaluation, once."""

from __future__ import annotations

from typing import Any

import paddle.distributed as dist
from ppdet.engine.callbacks import Callback


class Hook(Callback):
    """A ppdet callback whose methods say when they are called.

    ppdet calls the same method after a training epoch and after an evaluation, and tells them
    apart by ``status['mode']``, which is missing or out of date at times. Hooks override
    the methods below instead and never read it.

    Args:
        trainer: ppdet's Trainer.
    """

    def __init__(self, trainer: Any) -> None:
        super().__init__(trainer)
        self.trainer = trainer

    @property
    def is_main_process(self) -> bool:
        """Whether this process is the one that prints and saves."""
        return dist.get_world_size() < 2 or dist.get_rank() == 0

    def on_epoch_end(self, status: dict[str, Any]) -> None:
        """Called by ppdet; dispatches."""
        if status.get("mode") == "train":
            self.after_train_epoch(status)
        elif status.get("mode") == "eval":
            self.after_evaluation(status)

    def after_train_epoch(self, status: dict[str, Any]) -> None:
        """After the last step of a training epoch, before any evaluation."""

    def after_evaluation(self, status: dict[str, Any]) -> None:
        """After an evaluation, its metrics accumulated."""
