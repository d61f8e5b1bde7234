"""Whether an int8 artefact is as good as the model that simulates it."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import paddle

from slim_det.errors import ExportError
from slim_det.export.deploy_program import DeployProgram
from slim_det.export.divergence import first_divergence
from slim_det.export.images import eval_at, eval_images
from slim_det.export.predictor import MODEL_FILE, Predictor
from slim_det.metrics.evaluation import dygraph_predictor, evaluate

logger = logging.getLogger("slim_det")

AP_TOLERANCE = 0.005
"""Half a point between two engines of the same integers."""

NO_EVAL = "add --no_eval to export without measuring AP"


@dataclass(frozen=True)
class MetricCheck:
    """AP of a quantized model and of its artefact on ``EvalDataset``, fractions 0 to 1.

    Attributes:
        name: As in `slim_det.metrics.evaluation.EvalResult`.
        model: AP of the model that simulates integers.
        artifact: AP of the exported file in Paddle Inference.
        num_images: Images evaluated.
    """

    name: str
    model: float
    artifact: float
    num_images: int

    def as_dict(self) -> dict[str, Any]:
        """The figures under their JSON keys."""
        return asdict(self)

    def __str__(self) -> str:
        """One line for people."""
        return (
            f"{self.name} {self.artifact:.4f} in Paddle Inference and {self.model:.4f} in the "
            f"model, on {self.num_images} images"
        )


def check_metric(
    model: paddle.nn.Layer, cfg: Any, folder: Path, image_size_hw: tuple[int, int]
) -> MetricCheck:
    """Evaluate a quantized model and its artefact on the same images, at the exported size.

    Args:
        model: The quantized model.
        cfg: ppdet's configuration.
        folder: The artefact.
        image_size_hw: Height and width that it was exported for.

    Raises:
        ExportError: ``EvalDataset`` cannot be read, or AP differs by more than half a point; the
            first layer that differs is then named.
    """
    images = eval_images(NO_EVAL)
    deployed = Predictor(folder)
    with eval_at(cfg, image_size_hw):
        shipped = evaluate(cfg, deployed, "paddle_inference", latency_runs=1)
        simulated = evaluate(cfg, dygraph_predictor(model), "dygraph", latency_runs=1)
    found = MetricCheck(shipped.metric, simulated.ap, shipped.ap, shipped.num_images)
    if not abs(found.model - found.artifact) <= AP_TOLERANCE:
        program = DeployProgram.load(folder / Path(MODEL_FILE).stem)
        layer = first_divergence(model, program, cfg, images)
        raise ExportError(
            f"{found}: {abs(found.model - found.artifact) * 100:.2f} points apart, expected at "
            f"most {AP_TOLERANCE * 100:g}; {layer}"
        )
    return found
