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
) -> MetricCheck:
    """Evaluate a quantized model and its artifact on the same images, at the exported size.

    ``EvalReader`` prepares the images of the model, and ``infer_cfg.yml`` those of the artifact.

    Args:
        model: The quantized model.
        cfg: ppdet's configuration.
        folder: Folder of the artifact.
        image_size_hw: Exported height and width in pixels.
        max_gap: Largest allowed AP difference in points.

    Raises:
        ExportError: ``EvalDataset`` cannot be read, or AP differs by more than ``max_gap``; the
            message then names the first layer that differs.
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
    return found
