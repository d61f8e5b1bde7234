"""Post-training quantization: needs a trained float model and a few images."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import paddle

from slim_det.compress.images import calibration_images
from slim_det.compress.quantize.bias_correction import correct_biases
from slim_det.compress.quantize.from_images import quantize_from_images
from slim_det.compress.quantize.observers import PtqOptions
from slim_det.compress.quantize.quantization_error import (
    QuantizationError,
    layer_quantization_errors,
)
from slim_det.compress.quantize.record import QuantRecord, record_of
from slim_det.compress.quantize.settings import QuantSettings
from slim_det.core.errors import QuantError
from slim_det.detectors.image_size import image_size_hw
from slim_det.graph.trace import Trace

logger = logging.getLogger("slim_det")

COMPARED_IMAGES = 16
"""Images for quantization errors that only a report needs."""


@dataclass(frozen=True)
class PtqResult:
    """Result of a post-training quantization.

    Attributes:
        record: The record that is attached to the model.
        images: Paths of the calibration images.
        trace: Operators of the float model.
        quantization_errors: Module path -> error of the layer, before biases were corrected.
    """

    record: QuantRecord
    images: list[str]
    trace: Trace
    quantization_errors: dict[str, QuantizationError]


def run_ptq(
    model: paddle.nn.Layer,
    cfg: Any,
    settings: QuantSettings,
    options: PtqOptions,
) -> PtqResult:
    """Quantize a trained float model, in place.

    Args:
        model: A detector with trained weights.
        cfg: ppdet's configuration (see `calibration_images`); ``TestReader`` prepares the images.
        settings: Types and bits, and layers to skip.
        options: Observer, images, bias correction.

    Raises:
        ConfigError: An option is not valid, or a name to skip matches nothing.
        DataError: There are too few images.
        QuantError: The model is quantized already, or nothing is left to quantize.
    """
    options.check()
    require_float(model)
    source, images = calibration_images(options.images)
    origin = {
        "method": "post",
        "observer": options.observer,
        "images": len(images),
        "source": source,
        "bias_correction": options.bias_correction,
    }
    if options.observer == "hist":
        origin["percent"] = options.percent
    record, trace = quantize_from_images(
        model, cfg, image_size_hw(cfg), settings, images, origin, options.percent
    )
    compared = images if options.bias_correction else images[:COMPARED_IMAGES]
    quantization_errors = layer_quantization_errors(model, cfg, compared)
    if options.bias_correction:
        correct_biases(model, quantization_errors)
    logger.info(
        "quantized %d layers after %d images with '%s'; %d stay in float",
        len(record.layers),
        len(images),
        options.observer,
        len(record.kept_float),
    )
    return PtqResult(record, images, trace, quantization_errors)


def require_float(model: paddle.nn.Layer) -> None:
    """Raise `QuantError` if a model is quantized already."""
    record = record_of(model)
    if record is not None:
        method = {"post": "post-training quantization", "aware": "quantization-aware training"}.get(
            str(record.origin.get("method")), "unknown"
        )
        raise QuantError(f"the weights are quantized already ({method}); expected float weights")
