"""Bias correction: removes the mean error of every channel (1906.04721, section 4.2)."""

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
    """Add its mean error to every output channel: to the bias, or to the batch norm that follows.

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
    """Inside the context, layers that run in float are without their correction.

    Args:
        model: A quantized model.
        quantization_errors: As for `correct_biases`; empty if it did not run.
        names: Module paths of the layers.
        forever: Do not restore the correction at the end.
    """
    layers = quantized_layers(model)
    changed = {name: layers[name] for name in names if name in quantization_errors}
    targets = map(shift_of, changed.values())
    before = [(target, target.numpy()) for target in targets if target is not None]
    for name, layer in changed.items():
        _add(layer, quantization_errors[name], -1.0)
    try:
        yield
    finally:
        if not forever:
            for target, values in before:
                target.set_value(values)


def shift_of(layer: QuantConv2D) -> paddle.Tensor | None:
    """The running mean or bias that shifts the output of a layer; None if it has neither."""
    return layer.bias if layer.norm is None else layer.norm._mean


def _add(layer: QuantConv2D, error: QuantizationError, times: float) -> bool:
    """Add ``times`` the mean error to the output of a layer; False if nothing can shift it."""
    target = shift_of(layer)
    if target is None:
        return False
    sign = 1.0 if layer.norm is None else -1.0
    values = target.numpy().astype(np.float64) + times * sign * error.mean_difference
    target.set_value(values.astype("float32"))
    return True
