"""The `Distill` of a slim file: a student learns from a teacher during its ordinary training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import paddle
from ppdet.core.workspace import global_config

from slim_det.compress.distill.distiller import Distiller
from slim_det.compress.distill.fit import check_boxes, check_fit, num_classes
from slim_det.compress.distill.losses import LOSSES
from slim_det.compress.distill.preflight import DistillPreflight
from slim_det.compress.distill.schedule import DistillSchedule
from slim_det.compress.distill.settings import read_factor, read_terms
from slim_det.compress.distill.slim_file import read_distill
from slim_det.compress.distill.teacher import build_teacher
from slim_det.compress.strategy import Context, Strategy, registered_strategies


class Distill(Strategy):
    """Adds terms to a student's loss that compare it with a teacher.

    Args:
        teacher: ``{config: FILE, weights: FILE}`` of the teacher.
        loss: Loss of the outputs: `l2`, `split` or `dml` of YOLOv3, `ppyoloe`, or `ld` of GFL;
            None for only ``pairs``.
        weight: Its weight; None for the published one.
        factors: Factors of its parts; None for the published ones.
        pairs: More terms, each ``{student: LAYER, teacher: LAYER, loss: NAME, ...}``.
        start_epoch: First epoch in which the terms act, from 0.
        end_epoch: First epoch in which they no longer act; None where they act to the end.
        ramp_epochs: Epochs over which their weights grow linearly.
        total_factor: Factor of the total loss, above 0.

    Raises:
        ConfigError: A setting is wrong.
    """

    step = Distiller
    hooks = (DistillSchedule, DistillPreflight)
    comes_after = ("Pruner",)
    only_in_training = True

    def __init__(
        self,
        teacher: Mapping[str, Any],
        loss: str | None = "l2",
        weight: float | None = None,
        pairs: Sequence[Mapping[str, Any]] | None = None,
        start_epoch: int = 0,
        end_epoch: int | None = None,
        ramp_epochs: int = 0,
        factors: Mapping[str, float] | None = None,
        total_factor: float = 1.0,
    ) -> None:
        self.teacher = teacher
        schedule = {"start_epoch": start_epoch, "end_epoch": end_epoch, "ramp_epochs": ramp_epochs}
        self.terms = read_terms(loss, weight, pairs, factors, **schedule)
        self.total_factor = read_factor("Distill: total_factor", total_factor)

    def __call__(self, model: paddle.nn.Layer, context: Context) -> paddle.nn.Layer:
        """Build the teacher and attach a distiller to the student, which is not changed itself.

        Raises:
            ConfigError: The teacher does not fit the student, or a layer is unknown.
            WeightsError: The teacher's weights are missing, or of another model.
        """
        teacher = build_teacher(self.teacher, context.load_detector)
        losses = [LOSSES[term.loss] for term in self.terms]
        on_outputs = any(not loss.of_layers for loss in losses)
        check_fit(model, context.cfg, teacher, compare_outputs=on_outputs)
        if any(loss.needs_boxes for loss in losses):
            check_boxes(context.cfg)
        classes = num_classes(model, context.cfg)
        Distiller(model, teacher.model, self.terms, classes, self.total_factor).attach()
        return model

    @classmethod
    def read_slim_file(cls, tree: dict[str, Any], path: str) -> dict[str, Any]:
        """Read PaddleDetection's historical keys too (see `read_distill`)."""
        others = [name for name in registered_strategies() if name != "Distill"]
        has_teacher = bool((global_config.get("Distill") or {}).get("teacher"))
        return read_distill(tree, path, others, has_teacher)
