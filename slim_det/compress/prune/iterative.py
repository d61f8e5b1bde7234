"""Prunes a model further while it is trained: the later steps of a schedule."""

from __future__ import annotations

import logging
from typing import Any

import paddle
import paddle.distributed as dist

from slim_det.compress.hook import Hook
from slim_det.compress.prune.compose import slices_between
from slim_det.compress.prune.plan import Plan, plan_of
from slim_det.compress.prune.schedule import Steps
from slim_det.compress.prune.stepwise import check_epochs
from slim_det.compress.prune.training_state import (
    restart_average,
    slice_training_state,
    slots_by_parameter,
)
from slim_det.compress.steps import steps_of
from slim_det.compress.strategy import Context, advance_step
from slim_det.core.errors import ConfigError
from slim_det.detectors.build import build_detector

logger = logging.getLogger("slim_det")


class IterativePruning(Hook):
    """Makes the steps that a plan's schedule has left, each before the epoch in which it is due.

    The first step is made before the Trainer exists. The later ones slice parameters, optimizer
    state and moving average in place: all of them stay the same objects, so the optimizer goes on
    with what it has. The learning rate starts again if the schedule says so. The plan records the
    steps that are done, so a resumed training makes the others in the same epochs.

    Args:
        trainer: ppdet's Trainer, with a pruned model.

    Raises:
        ConfigError: The training cannot lose channels, or is too short for the steps.
    """

    def __init__(self, trainer: Any) -> None:
        super().__init__(trainer)
        self._check()

    def before_training(self, status: dict[str, Any]) -> None:
        """Check a resumed training, which has its steps only now.

        Raises:
            ConfigError: As the constructor, or the checkpoint has missed steps.
        """
        self._check()
        steps, start = self._steps_left(), self.trainer.start_epoch
        if steps is not None and steps.due(start) > steps.done + 1:
            raise ConfigError(
                f"the model has had {steps.done} of {steps.count} steps of its schedule and epoch "
                f"{start} is past the next ones; expected a checkpoint that this schedule has left"
            )

    def before_train_epoch(self, status: dict[str, Any]) -> None:
        """Prune if a step is due."""
        steps, epoch = self._steps_left(), status["epoch_id"]
        if steps is None or steps.due(epoch) <= steps.done:
            return
        if self.is_main_process:
            logger.info("epoch %d: step %d of %d of pruning", epoch, steps.done + 1, steps.count)
        self._advance()

    def _steps_left(self) -> Steps | None:
        """The schedule, if this training goes on with it and steps are left."""
        plan = plan_of(self.trainer.model)
        steps = plan.steps if plan is not None and plan.continues else None
        return None if steps is None or steps.is_complete else steps

    def _check(self) -> None:
        steps = self._steps_left()
        if steps is None:
            return
        trainer, where = self.trainer, "Pruner.schedule"
        check_epochs(steps, trainer.cfg)
        self.refuse_to_static(f"{where}: a compiled model cannot lose channels")
        if dist.get_world_size() > 1 or trainer.cfg.get("fleet"):
            raise ConfigError(
                f"{where}: channels cannot be removed in a distributed training; expected a "
                "single process without --fleet"
            )
        if getattr(trainer, "use_amp", False) and trainer.amp_level == "O2":
            raise ConfigError(
                f"{where}: channels cannot be removed where the optimizer keeps weights of its "
                "own; expected amp_level: O1"
            )
        for step in steps_of(trainer.model):
            if step.forbids_slicing:
                raise ConfigError(
                    f"{where}: no channel can be removed in this training: {step.forbids_slicing}; "
                    "do it in a training of its own, after the last step"
                )

    def _advance(self) -> None:
        trainer = self.trainer
        before = _plan(trainer.model)
        slots = slots_by_parameter(trainer.model, trainer.optimizer)
        cfg, size = trainer.cfg, before.image_size_hw
        context = Context(cfg, size, "train", build_detector=lambda: _build_detector(cfg))
        advance_step(trainer.model, before, context)
        slices = slices_between(before, _plan(trainer.model))
        average = trainer.ema.state_dict if getattr(trainer, "use_ema", False) else {}
        slice_training_state(trainer.model, slices, slots, average)
        if _plan(trainer.model).repair is not None:
            restart_average(trainer.model, average)
        if before.steps is not None and before.steps.asked.get("restart_lr"):
            trainer.lr.step(0)


def _plan(model: paddle.nn.Layer) -> Plan:
    plan = plan_of(model)
    if plan is None:
        raise ConfigError("the model is not pruned; 'slim' has to name Pruner")
    return plan


def _build_detector(cfg: Any) -> paddle.nn.Layer:
    """An unpruned detector of a configuration; the random state of the training stays."""
    random_state = paddle.get_rng_state()
    try:
        return build_detector(cfg)
    finally:
        paddle.set_rng_state(random_state)
