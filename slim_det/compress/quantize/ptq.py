"""Post-training quantization: needs a trained float model and a few images."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import paddle

from slim_det.compress.quantize.bias_correction import correct_biases
from slim_det.compress.quantize.calibrate import calibration_images, collect
from slim_det.compress.quantize.model import quantize_model
from slim_det.compress.quantize.observers import PostOptions, input_range
from slim_det.compress.quantize.quantizable_layers import find_quantizable_layers
from slim_det.compress.quantize.quantization_error import (
    QuantizationError,
    layer_quantization_errors,
)
from slim_det.compress.quantize.record import QuantRecord, record_of
from slim_det.compress.quantize.settings import QuantSettings
from slim_det.core.errors import QuantError
from slim_det.detectors.image_size import image_size_hw
from slim_det.graph.trace import Trace, trace_detector

logger = logging.getLogger("slim_det")

COMPARED_IMAGES = 16
"""Images for quantization errors that only a report needs."""


@dataclass(frozen=True)
class PostResult:
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


def quantize_post(
    model: paddle.nn.Layer,
    cfg: Any,
    settings: QuantSettings,
    options: PostOptions,
) -> PostResult:
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
    return PostResult(record, images, trace, quantization_errors)


def quantize_from_images(
    model: paddle.nn.Layer,
    cfg: Any,
    size_hw: tuple[int, int],
    settings: QuantSettings,
    images: list[str],
    origin: dict[str, Any],
    percent: float = PostOptions.percent,
) -> tuple[QuantRecord, Trace]:
    """Find the ranges of a float model on images, and quantize it in place.

    Args:
        model: A detector.
        cfg: ppdet's configuration; ``TestReader`` prepares the images.
        size_hw: Image size for tracing, in pixels.
        settings: Types and bits, and layers to skip.
        images: Paths of the images.
        origin: For the record; its ``observer`` finds the ranges.
        percent: Share of the values that the observer ``hist`` keeps.

    Returns:
        The record, and the operators of the float model.

    Raises:
        ConfigError: A name to skip matches nothing.
        QuantError: Nothing is left to quantize.
    """
    trace = trace_detector(model, size_hw)
    found = find_quantizable_layers(model, trace, settings)
    statistics = collect(model, found.layers, cfg, images)
    bits = {layer.name: settings.input_bits(layer.unsigned) for layer in found.layers}
    ranges = {
        name: input_range(origin["observer"], one, bits[name], percent)
        for name, one in statistics.items()
    }
    record = QuantRecord(settings, found.layers, found.kept_float, origin, found.rounded)
    quantize_model(model, record, ranges)
    return record, trace


def require_float(model: paddle.nn.Layer) -> None:
    """Raise `QuantError` if a model is quantized already."""
    record = record_of(model)
    if record is not None:
        method = {"post": "post-training quantization", "aware": "quantization-aware training"}.get(
            str(record.origin.get("method")), "unknown"
        )
        raise QuantError(f"the weights are quantized already ({method}); expected float weights")
