"""The course of a distillation: weights of terms by epoch, and steps of the auxiliary modules."""

from __future__ import annotations

import logging
from typing import Any

from slim_det.compress.distill.bound_term import BoundTerm
from slim_det.compress.distill.distiller import distiller_of
from slim_det.compress.hook import Hook
from slim_det.core.errors import ConfigError

logger = logging.getLogger("slim_det")


class DistillSchedule(Hook):
    """Tells a distiller which epoch and step it is, and trains its auxiliary modules.

    Args:
        trainer: ppdet's Trainer, with a model that has a distiller.

    Raises:
        ConfigError: The model has none, the training is to be compiled, or auxiliary modules are to
            be trained in mixed precision on a GPU.
    """

    def __init__(self, trainer: Any) -> None:
        super().__init__(trainer)
        distiller = distiller_of(trainer.model)
        if distiller is None:
            raise ConfigError("the model has no teacher; 'slim' has to name Distill")
        self.refuse_to_static(
            "a student cannot be distilled with to_static: its layers are tapped while they run"
        )
        # ppdet scales the student's loss then, and undoes that in its own optimizer only.
        is_scaled = getattr(trainer, "use_amp", False) and getattr(trainer.cfg, "use_gpu", False)
        if distiller.auxiliary_modules is not None and is_scaled:
            raise ConfigError(
                "adaptors and peers cannot be trained with --amp on a GPU; leave --amp out, or "
                "take losses between layers of equal width"
            )
        self.distiller = distiller
        self._weights: dict[str, float] = {}

    def before_training(self, status: dict[str, Any]) -> None:
        """Let every process start from the same auxiliary modules."""
        if self.distiller.auxiliary_modules is not None:
            self.distiller.auxiliary_modules.synchronize()

    def before_train_epoch(self, status: dict[str, Any]) -> None:
        """Set the epoch; log which weights change."""
        self.distiller.epoch = epoch = status["epoch_id"]
        for term in self.distiller.terms:
            before, weight = self._weights.get(term.key), term.weight(epoch)
            if self.is_main_process and weight != before:
                logger.info(
                    "epoch %d: %s %s", epoch, term.key, _change(term, before, weight, epoch)
                )
            self._weights[term.key] = weight

    def before_train_step(self, status: dict[str, Any]) -> None:
        """Set the step."""
        self.distiller.step = status["step_id"]

    def after_train_step(self, status: dict[str, Any]) -> None:
        """Train the auxiliary modules at the student's rate."""
        if self.distiller.auxiliary_modules is not None:
            self.distiller.auxiliary_modules.step(status["learning_rate"])


def _change(term: BoundTerm, before: float | None, weight: float, epoch: int) -> str:
    """How a weight changes, in words; ``before`` is None in the first epoch of a run."""
    full, start = term.term.weight, term.term.schedule.start_epoch
    if weight == 0:
        return f"starts in epoch {start}" if epoch < start else "acts no more"
    if not before:
        ramp = "" if weight == full else f" and grows to {full:g}"
        return f"acts with weight {weight:g}{ramp}"
    return f"grows to weight {weight:g} of {full:g}"
