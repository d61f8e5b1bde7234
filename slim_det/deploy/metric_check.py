"""Whether an int8 artifact is as good as the model that simulates it."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import paddle

from slim_det.core.errors import ExportError
from slim_det.deploy.divergence import first_divergence
from slim_det.deploy.predictor import MODEL_FILE, Predictor
from slim_det.evaluate.evaluation import POINTS, dygraph_predictor, evaluate
from slim_det.evaluate.images import eval_at, eval_images
from slim_det.graph.program import DeployProgram

logger = logging.getLogger("slim_det")

MAX_GAP = 0.5
"""Points of AP between two engines of the same integers."""

NO_EVAL = "add --no_eval to export without measuring AP"


@dataclass(frozen=True)
class MetricCheck:
    """AP of a quantized model and of its artifact on ``EvalDataset``, fractions 0 to 1.

    Attributes:
        name: As in `slim_det.evaluate.evaluation.EvalResult`.
        model: AP of the model that simulates integers.
        artifact: AP of the exported file in Paddle Inference.
        num_images: Images evaluated.
        per_class: Class, or setting of WIDER FACE -> AP of the exported file.
    """

    name: str
    model: float
    artifact: float
    num_images: int
    per_class: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """The figures under their JSON keys."""
        return asdict(self)

    def of_artifact(self) -> dict[str, Any]:
        """The artifact's figures under their names in an `ExportResult`."""
        return {
            "ap": self.artifact,
            "per_class": self.per_class,
            "images_checked": self.num_images,
        }

    def __str__(self) -> str:
        """One line for people."""
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

    Args:
        model: The quantized model.
        cfg: ppdet's configuration.
        folder: The artifact.
        image_size_hw: Height and width that it was exported for.
        max_gap: Points of AP that may lie between the two.

    Raises:
        ExportError: ``EvalDataset`` cannot be read, or AP differs by more; the
            first layer that differs is then named.
    """
    images = eval_images(NO_EVAL)
    deployed = Predictor(folder)
    with eval_at(cfg, image_size_hw):
        shipped = evaluate(cfg, deployed, "paddle_inference", latency_runs=1)
        simulated = evaluate(cfg, dygraph_predictor(model), "dygraph", latency_runs=1)
    found = MetricCheck(
        shipped.metric, simulated.ap, shipped.ap, shipped.num_images, shipped.per_class
    )
    gap = abs(found.model - found.artifact) * POINTS
    if not gap <= max_gap:
        program = DeployProgram.load(folder / Path(MODEL_FILE).stem)
        layer = first_divergence(model, program, cfg, images)
        raise ExportError(
            f"{found}: {gap:.2f} points apart, expected at most {max_gap:g} (--max_gap); {layer}"
        )
    return found
