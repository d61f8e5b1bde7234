"""Saves checkpoints with the steps of their model, and the best one separately."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from slim_det.compress.hook import Hook
from slim_det.compress.steps import Step, step_of, steps_of
from slim_det.compress.strategy import read_steps
from slim_det.training import checkpoint

logger = logging.getLogger("slim_det")


class CheckpointSaver(Hook):
    """Replaces ppdet's Checkpointer; writes the same files, and those of steps.

    Unlike with ppdet's, a resumed run still knows its best AP, and an evaluation without any
    boxes counts as AP 0. A model that was pruned further competes only with those of its own size.
    """

    def __init__(self, trainer: Any) -> None:
        super().__init__(trainer)
        cfg = trainer.cfg
        self.folder = Path(cfg.save_dir) / cfg.filename
        self.model = trainer.model
        self.best_ap: float | None = None
        self._best_steps: list[Step] = []

    def after_train_epoch(self, status: dict[str, Any]) -> None:
        """Save every ``snapshot_epoch`` epochs, and the last one as ``model_final``."""
        name = self.snapshot_name(status)
        if name and self.is_main_process:
            self._save(name, status["epoch_id"] + 1, status)

    def after_evaluation(self, status: dict[str, Any]) -> None:
        """Save ``best_model`` if the first metric is at least as good as ever before."""
        if not status.get("save_best_model") or not self.is_main_process:
            return
        ap = metric_value(self.trainer._metrics[0])
        steps = steps_of(self.model)
        if self.best_ap is None or any(a is not b for a, b in zip(steps, self._best_steps)):
            self.best_ap, self._best_steps = self._stored_best(), steps
        if ap >= self.best_ap:
            self.best_ap = ap
            best = {"ap": ap, "epoch": status["epoch_id"]}
            self._save("best_model", status["epoch_id"] + 1, status, best)
        logger.info("AP %.4f, best so far %.4f", ap, self.best_ap)

    def _stored_best(self) -> float:
        """AP of the best model of a resumed run; -1 in a new one, or if it was changed since."""
        path = self.folder / "best_model.json"
        if self.trainer.start_epoch == 0 or not path.is_file():
            return -1.0
        for stored in read_steps(self.folder / "best_model"):
            done = step_of(self.model, type(stored))
            if done is None or done.differs(stored):
                return -1.0
        return float(json.loads(path.read_text(encoding="utf-8"))["ap"])

    def _save(
        self, name: str, done: int, status: dict[str, Any], best: dict[str, Any] | None = None
    ) -> None:
        state, ema_state = self.model.state_dict(), None
        if self.trainer.use_ema:
            # ppdet has put the average into the model and the trained weights into the status.
            state, ema_state = status["weight"], state
        checkpoint.save(
            self.folder / name,
            state,
            self.trainer.optimizer,
            done,
            steps_of(self.model),
            ema_state,
            best,
        )


def metric_value(metric: Any) -> float:
    """The first figure of a ppdet metric, a fraction; 0 without any boxes."""
    results = metric.get_results()
    return float(next(iter(results.values()))[0]) if results else 0.0
