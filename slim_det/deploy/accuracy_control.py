"""Accuracy control: keeps as few layers in float as a limit on the metric drop requires."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle
from tqdm import tqdm

from slim_det.compress.quantize.bias_correction import shift_of, uncorrected
from slim_det.compress.quantize.model import keep_float, program_ranges, quantized_layers
from slim_det.compress.quantize.ptq import PtqResult
from slim_det.compress.quantize.quantization_error import QuantizationError, only_quantized
from slim_det.core.errors import QuantError
from slim_det.deploy.predictor import boxes_of
from slim_det.deploy.preprocessing import (
    deploy_settings,
    deployed_program,
    fused_normalization,
)
from slim_det.detectors.image_size import program_size_hw, target_size_hw
from slim_det.evaluate.detections import Detections
from slim_det.evaluate.evaluation import EvalResult, evaluate, evaluate_model
from slim_det.evaluate.images import eval_at, image_batches
from slim_det.evaluate.preprocess import ArtifactReader
from slim_det.evaluate.tensor_agreement import ErrorEnergy
from slim_det.graph.activations import ActivationRecorder, output_array
from slim_det.graph.dygraph import evaluation_mode
from slim_det.graph.engine import cpu_has_int8
from slim_det.graph.folding import fold_batch_norm
from slim_det.graph.int8_program import write_int8
from slim_det.graph.operators import weight_of
from slim_det.graph.program import last_convolutions
from slim_det.graph.trace import Trace

logger = logging.getLogger("slim_det")

RANKED_IMAGES = 4
"""Number of images on which the layers are ranked by error."""


@dataclass(frozen=True)
class SearchStep:
    """One measurement of a search.

    Attributes:
        layers_float: Number of quantized layers that were put back to float.
        ap: Metric of the int8 program, 0 to 1.
        drop: Points below the float program (see `EvalResult.points_below`).
    """

    layers_float: int
    ap: float
    drop: float


@dataclass(frozen=True)
class SearchResult:
    """Result of a search.

    Attributes:
        kept: Module paths of the layers put back to float.
        steps: All measurements, in order.
        errors: Module path -> relative squared error of the raw outputs when only this layer is
            quantized; empty if no layer had to be put back.
    """

    kept: list[str]
    steps: list[SearchStep]
    errors: dict[str, float]


def search_float_layers(
    metric: DeployedMetric, ptq: PtqResult, in_float: EvalResult, max_drop: float
) -> SearchResult:
    """Put layers back to float until the drop of the int8 program is at most ``max_drop``.

    Layers are ranked by the error that each alone causes in the raw outputs. The worst 1, 2, 4,
    ... are put back until the drop is small enough; then bisection finds the smallest number.

    Args:
        metric: Metric of the model that was quantized; the layers found are put back to float in
            that model.
        ptq: Result of its quantization.
        in_float: Metric of the float program in Paddle Inference.
        max_drop: Allowed drop in points of the metric, 0 to 100; for WIDER FACE in each setting.

    Raises:
        QuantError: Even with only one layer in int8 the drop is larger; the model is unchanged.
    """
    model = metric.model
    corrections = ptq.quantization_errors if ptq.record.origin.get("bias_correction") else {}
    names = list(quantized_layers(model))
    steps: list[SearchStep] = []
    errors: dict[str, float] = {}

    def drop_of(count: int) -> float:
        if count and not errors:
            errors.update(output_errors(model, ptq.trace, metric.cfg, ptq.images[:RANKED_IMAGES]))
        found = metric.in_int8(_worst(errors, count), corrections)
        steps.append(SearchStep(count, found.ap, found.points_below(in_float)))
        logger.info(
            "%d of %d layers back in float: %s %.4f, %.2f points below float",
            count,
            len(names),
            found.metric,
            found.ap,
            steps[-1].drop,
        )
        return steps[-1].drop

    count = fewest(drop_of, len(names) - 1, max_drop)
    if count is None:
        raise QuantError(
            f"--max_drop {max_drop:g} cannot be met: with {steps[-1].layers_float} of {len(names)} "
            f"layers in float the metric is still {steps[-1].drop:.2f} points below float, and "
            "there is nothing left to try"
        )
    kept = _worst(errors, count)
    if kept:
        with uncorrected(model, corrections, kept, forever=True):
            keep_float(
                model, kept, f"in float so that the metric drops by at most {max_drop:g} points"
            )
    return SearchResult(kept, steps, errors)


def fewest(drop_of: Callable[[int], float], most: int, limit: float) -> int | None:
    """The smallest count whose drop is within a limit, assuming drops decrease with the count.

    Args:
        drop_of: Measures the drop of a count; called at most once per count.
        most: Largest count to try.
        limit: Largest allowed drop.

    Returns:
        The count; None if not even ``most`` is enough.
    """
    if drop_of(0) <= limit:
        return 0
    failed, count = 0, 1
    while True:
        count = min(count, most)
        if count == failed:
            return None
        if drop_of(count) <= limit:
            break
        failed, count = count, 2 * count
    while count - failed > 1:
        middle = (count + failed) // 2
        if drop_of(middle) <= limit:
            count = middle
        else:
            failed = middle
    return count


def output_errors(
    model: paddle.nn.Layer, trace: Trace, cfg: Any, images: list[str]
) -> dict[str, float]:
    """How much quantizing each layer alone changes the outputs of the last convolutions.

    Args:
        model: A quantized model; left unchanged.
        trace: Its trace.
        cfg: ppdet's configuration.
        images: Paths of image files.

    Returns:
        Module path -> sum of squared differences over the sum of squares of the float output, over
        all images; summed over the outputs.
    """
    modules = dict(model.named_sublayers())
    weights = [trace.parameters[weight_of(op)] for op in last_convolutions(trace.ops)]
    paths = [weight.rpartition(".")[0] for weight in weights]
    recorder = ActivationRecorder({path: modules[path] for path in paths}, output_array)

    def run(batches: list[Any], names: Sequence[str]) -> list[list[np.ndarray]]:
        """The outputs of each last convolution on all batches."""
        with only_quantized(model, names), recorder.recording() as kept:
            for batch in batches:
                model(batch)
            return [list(calls) for calls in kept.values()]

    with evaluation_mode(model), paddle.no_grad():
        batches = [batch for _, batch in image_batches(cfg, images, target_size_hw(cfg))]
        exact = run(batches, ())
        layers = tqdm(quantized_layers(model), "ranking", unit="layer", disable=None, leave=False)
        return {name: _relative_error(exact, run(batches, [name])) for name in layers}


class DeployedMetric:
    """Measures the metric of a detector in Paddle Inference repeatedly, tracing it only once.

    Images are read as those of its artifact will be, by the ``infer_cfg.yml`` that it will have.
    On a CPU without int8 instructions, int8 is measured in dygraph, which simulates it.

    Args:
        model: A float or quantized detector; if it is quantized later, measurements follow.
        cfg: ppdet's configuration; the metric is measured on ``EvalDataset``.
    """

    def __init__(self, model: paddle.nn.Layer, cfg: Any) -> None:
        self.model = model
        self.cfg = cfg
        self._reader = ArtifactReader(deploy_settings(cfg, target_size_hw(cfg)))
        size_hw = program_size_hw(cfg)
        self._program = deployed_program(model, size_hw, fused_normalization(cfg))

    def in_float(self) -> EvalResult:
        """The metric of the float program."""
        return self._measure(None)

    def in_int8(
        self, back: Sequence[str] = (), corrections: Mapping[str, QuantizationError] | None = None
    ) -> EvalResult:
        """The metric in int8; the quantized model is left unchanged.

        Args:
            back: Module paths of layers that are float in this measurement.
            corrections: Bias corrections by module path; they are undone in float layers.
        """
        with uncorrected(self.model, corrections or {}, back):
            return self._measure(back) if cpu_has_int8() else self._simulate(back)

    def _simulate(self, back: Sequence[str]) -> EvalResult:
        """The metric in dygraph: int8 kernels overflow on a CPU without int8 instructions."""
        int8 = set(quantized_layers(self.model)).difference(back)
        with only_quantized(self.model, int8), eval_at(self.cfg, target_size_hw(self.cfg)):
            return evaluate_model(self.cfg, self.model)

    def _measure(self, back: Sequence[str] | None) -> EvalResult:
        """The metric in int8 except for the layers ``back``; entirely in float if it is None."""
        program = self._program.copy()
        layers = quantized_layers(self.model)
        for parameter in map(shift_of, layers.values()):
            if parameter is not None:
                program.set_value(parameter.name, parameter.numpy())
        fold_batch_norm(program)
        if back is not None:
            gone = {layers[name].weight.name for name in back}
            ranges = program_ranges(self.model)
            write_int8(program, {name: ranges[name] for name in ranges if name not in gone})
        engine = program.engine(int8=back is not None)

        def predict(batch: dict[str, Any]) -> list[Detections]:
            return boxes_of(engine, batch, "the program")

        return evaluate(self.cfg, predict, "paddle_inference", latency_runs=1, reader=self._reader)


def _worst(errors: dict[str, float], count: int) -> list[str]:
    """The layers with the largest errors."""
    return sorted(errors, key=lambda name: -errors[name])[:count]


def _relative_error(exact: list[list[np.ndarray]], found: list[list[np.ndarray]]) -> float:
    total = 0.0
    for references, outputs in zip(exact, found):
        error = ErrorEnergy()
        for reference, output in zip(references, outputs):
            error.add(output, reference)
        total += error.relative
    return total
