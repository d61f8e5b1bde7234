"""Removes the mean error that rounding leaves in every channel (1906.04721, section 4.2)."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Iterator, Mapping

import numpy as np
import paddle

from slim_det.compress.quantize.layers import QuantConv2D
from slim_det.compress.quantize.model import quantized_layers
from slim_det.compress.quantize.quantization_error import QuantizationError

logger = logging.getLogger("slim_det")


def correct_biases(
    model: paddle.nn.Layer, quantization_errors: Mapping[str, QuantizationError]
) -> list[str]:
    """Add to every output channel what its integers lack on average.

    Where batch norm follows, its running mean is lowered by as much; else the bias is raised.

    Args:
        model: A quantized model.
        quantization_errors: Module path -> error, of `layer_quantization_errors`.

    Returns:
        Module paths of layers that have neither batch norm nor bias, and stay as they are.
    """
    layers = quantized_layers(model)
    left = [
        name for name, layer in layers.items() if not _add(layer, quantization_errors[name], 1.0)
    ]
    if left:
        logger.info("no bias to correct in %d layers (%s)", len(left), ", ".join(left[:3]))
    return left


@contextlib.contextmanager
def uncorrected(
    model: paddle.nn.Layer,
    quantization_errors: Mapping[str, QuantizationError],
    names: Collection[str],
    forever: bool = False,
) -> Iterator[None]:
    """Take the correction back from layers that are to run in float.

    Args:
        model: A quantized model.
        quantization_errors: What `correct_biases` was given; empty where it did not run.
        names: Module paths of the layers.
        forever: Do not put the correction back at the end.
    """
    layers = quantized_layers(model)
    changed = [layers[name] for name in names if name in quantization_errors]
    before = [(target, target.numpy()) for target in map(shift_of, changed) if target is not None]
    for name in names:
        if name in quantization_errors:
            _add(layers[name], quantization_errors[name], -1.0)
    try:
        yield
    finally:
        if not forever:
            for target, values in before:
                target.set_value(values)


def shift_of(layer: QuantConv2D) -> paddle.Tensor | None:
    """What shifts the output of a layer: running mean, or bias; None where there is neither."""
    return layer.bias if layer.norm is None else layer.norm._mean


def _add(layer: QuantConv2D, error: QuantizationError, times: float) -> bool:
    """Raise the output of a layer by so many times its mean difference; whether it could be."""
    target = shift_of(layer)
    if target is None:
        return False
    sign = 1.0 if layer.norm is None else -1.0
    values = target.numpy().astype(np.float64) + times * sign * error.mean_difference
    target.set_value(values.astype("float32"))
    return True
