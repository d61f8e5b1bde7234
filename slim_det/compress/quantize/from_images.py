"""Quantizes a float model with ranges found on images: all of PTQ, and the beginning of QAT."""

from __future__ import annotations

from typing import Any

import paddle

from slim_det.compress.quantize.calibrate import collect
from slim_det.compress.quantize.model import quantize_model
from slim_det.compress.quantize.observers import PtqOptions, input_range
from slim_det.compress.quantize.quantizable_layers import find_quantizable_layers
from slim_det.compress.quantize.record import QuantRecord
from slim_det.compress.quantize.settings import QuantSettings
from slim_det.graph.trace import Trace, trace_detector


def quantize_from_images(
    model: paddle.nn.Layer,
    cfg: Any,
    size_hw: tuple[int, int],
    settings: QuantSettings,
    images: list[str],
    origin: dict[str, Any],
    percent: float = PtqOptions.percent,
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
