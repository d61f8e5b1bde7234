"""Evaluates a teacher and its student before the first epoch."""

from __future__ import annotations

import logging
from typing import Any

from slim_det.compress.distill.distiller import distiller_of
from slim_det.compress.hook import Hook
from slim_det.core.errors import SlimDetError
from slim_det.evaluate.data.check import check_dataset
from slim_det.evaluate.evaluation import evaluate_model

logger = logging.getLogger("slim_det")


class DistillPreflight(Hook):
    """Logs the accuracy of teacher and student, and warns where the teacher is worse.

    Args:
        trainer: ppdet's Trainer; ``skip_teacher_eval`` of its configuration skips this.
    """

    measures_start = True

    def before_training(self, status: dict[str, Any]) -> None:
        """Evaluate both, unless the run is resumed."""
        cfg, distiller = self.trainer.cfg, distiller_of(self.trainer.model)
        if distiller is None or not self.is_main_process or self.trainer.start_epoch:
            return
        if cfg.get("skip_teacher_eval"):
            logger.info("the teacher is not measured, as asked")
            return
        try:
            check_dataset(cfg, "EvalDataset")
            teacher, student = (
                evaluate_model(cfg, model) for model in (distiller.teacher, self.trainer.model)
            )
        except SlimDetError as error:
            logger.warning("the teacher cannot be measured: %s", error)
            return
        logger.info("teacher: %s", teacher)
        logger.info("student before training: %s", student)
        if teacher.ap < student.ap:
            logger.warning(
                "THE TEACHER IS WORSE THAN THE STUDENT: %s %.4f against %.4f before any training; "
                "check Distill.teacher.config and weights",
                teacher.metric,
                teacher.ap,
                student.ap,
            )
