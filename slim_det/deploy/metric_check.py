"""Checks that an int8 artifact reaches the AP of the model that simulates it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paddle

from slim_det.core.errors import ExportError
from slim_det.deploy.divergence import first_divergence
from slim_det.deploy.predictor import MODEL_FILE, Predictor
from slim_det.evaluate.evaluation import POINTS, evaluate, evaluate_model
from slim_det.evaluate.images import eval_at, eval_images
from slim_det.graph.engine import INT8_INSTRUCTIONS, NO_INT8
from slim_det.graph.program import DeployProgram

logger = logging.getLogger("slim_det")

MAX_GAP = 0.5
"""Largest AP difference in points between an int8 artifact and its model."""

COLLAPSE_SHARE = 0.5
"""A metric has collapsed if more than this share of it is lost, ..."""

COLLAPSE_POINTS = 1.0
"""... and more than these points: of hardly any AP, chance takes half."""

NO_EVAL = "add --no_eval to export without measuring AP"

_FLOAT_HINT = (
    f"; {NO_INT8}, so the artifact ran in float, without rounding its inputs: export on a CPU with "
    f"one of {', '.join(INT8_INSTRUCTIONS)}, or {NO_EVAL}"
)


@dataclass(frozen=True)
class MetricCheck:
    """AP of a quantized model and of its artifact on ``EvalDataset``, fractions 0 to 1.

    Attributes:
        name: Name of the metric (see `slim_det.evaluate.evaluation.EvalResult`).
        model: AP of the model with simulated quantization.
        artifact: AP of the artifact in Paddle Inference.
        num_images: Number of images evaluated.
        per_class: Class or WIDER FACE setting -> AP of the artifact.
    """

    name: str
    model: float
    artifact: float
    num_images: int
    per_class: dict[str, float]

    def of_artifact(self) -> dict[str, Any]:
        """The artifact's values, by field of `ExportResult`."""
        return {
            "ap": self.artifact,
            "per_class": self.per_class,
            "images_checked": self.num_images,
        }

    def __str__(self) -> str:
        """One human-readable line."""
        return (
            f"{self.name} {self.artifact:.4f} in Paddle Inference and {self.model:.4f} in the "
            f"model, on {self.num_images} images"
        )


def check_metric(
    model: paddle.nn.Layer,
    cfg: Any,
    folder: Path,
    image_size_hw: tuple[int, int],
    max_gap: float = MAX_GAP,
    in_float: float | None = None,
) -> MetricCheck:
    """Evaluate a quantized model and its artifact on the same images, at the exported size.

    ``EvalReader`` prepares the images of the model, and ``infer_cfg.yml`` those of the artifact.

    Args:
        model: The quantized model.
        cfg: ppdet's configuration.
        folder: Folder of the artifact.
        image_size_hw: Exported height and width in pixels.
        max_gap: Largest allowed AP difference in points.
        in_float: AP of the float model that was calibrated, a fraction; None if it was trained.

    Raises:
        ExportError: ``EvalDataset`` cannot be read, or AP differs by more than ``max_gap``; the
            message then names the first layer that differs. Or the metric has collapsed, whatever
            ``max_gap`` allows (see `has_collapsed`).
    """
    images = eval_images(NO_EVAL)
    deployed = Predictor(folder)
    shipped = evaluate(cfg, deployed, "paddle_inference", latency_runs=1, reader=deployed.reader)
    with eval_at(cfg, image_size_hw):
        simulated = evaluate_model(cfg, model)
    found = MetricCheck(
        shipped.metric, simulated.ap, shipped.ap, shipped.num_images, shipped.per_class
    )
    gap = abs(found.model - found.artifact) * POINTS
    if not gap <= max_gap:
        program = DeployProgram.load(folder / Path(MODEL_FILE).stem)
        layer = first_divergence(model, program, cfg, images, deployed.reader)
        hint = _FLOAT_HINT if deployed.precision == "float32" else ""
        raise ExportError(
            f"{found}: {gap:.2f} points apart, expected at most {max_gap:g} (--max_gap); "
            f"{layer}{hint}"
        )
    _require_no_collapse(found, in_float)
    return found


def has_collapsed(ap: float, expected: float) -> bool:
    """Whether more than half of a metric is lost, and more than a point; fractions 0 to 1.

    A model of which so little is left is never exported or saved.
    """
    return not expected - ap <= max(COLLAPSE_SHARE * expected, COLLAPSE_POINTS / POINTS)


def _require_no_collapse(found: MetricCheck, in_float: float | None) -> None:
    """Compare an artifact with its model, and with the float model that was calibrated."""
    if has_collapsed(found.artifact, found.model):
        raise ExportError(f"{found}: more than half is lost, which --max_gap cannot allow")
    if in_float is not None and has_collapsed(found.artifact, in_float):
        raise ExportError(
            f"{found.name} is {found.artifact:.4f} in int8 and {in_float:.4f} in float: more than "
            "half is lost, so nothing is saved; expected another --observer, more --images, or "
            "--max_drop P, which puts layers back to float"
        )
