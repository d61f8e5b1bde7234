"""How far the integers of each convolution are from its floats."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor

from slim_det.compress.quantize.calibrate import run_images
from slim_det.compress.quantize.layers import QuantConv2D
from slim_det.compress.quantize.model import quantized_layers
from slim_det.graph.activations import ActivationRecorder


@dataclass
class QuantizationError:
    """A convolution with integers against the same in float, on the inputs of the float model.

    Attributes:
        signal: Sum of the squares of the float output.
        noise: Sum of the squares of the difference.
        difference: Sum over images and pixels of float minus integer output, float64 [Cout].
        count: Images times pixels.
    """

    signal: float
    noise: float
    difference: np.ndarray
    count: int

    @property
    def mean_difference(self) -> np.ndarray:
        """What the integers lack on average in every channel, [Cout]."""
        return self.difference / max(self.count, 1)

    @property
    def sqnr_db(self) -> float:
        """Signal to quantization noise in decibels; infinite where there is no noise."""
        if self.noise == 0:
            return float("inf")
        return float(10 * np.log10(self.signal / self.noise)) if self.signal else -float("inf")


@contextlib.contextmanager
def only_quantized(model: paddle.nn.Layer, names: Collection[str]) -> Iterator[None]:
    """While active, of all quantized layers only these compute with integers.

    Args:
        model: A quantized model.
        names: Module paths; none makes the complete model float.
    """
    others = [layer for name, layer in quantized_layers(model).items() if name not in names]
    try:
        for layer in others:
            layer.__class__ = paddle.nn.Conv2D
        yield
    finally:
        for layer in others:
            layer.__class__ = QuantConv2D


def layer_quantization_errors(
    model: paddle.nn.Layer, cfg: Any, images: list[str]
) -> dict[str, QuantizationError]:
    """Compare every quantized convolution with its float form, each by itself.

    The float model runs; beside each convolution its integer form runs on the same input. So the
    error is the layer's own and not that of the layers before it.

    Args:
        model: A quantized model; left as it was.
        cfg: ppdet's configuration.
        images: Paths of image files.

    Returns:
        Module path -> error of the convolution's output, before batch norm.
    """
    layers = quantized_layers(model)
    found = {
        name: QuantizationError(0.0, 0.0, np.zeros(layer.weight.shape[0]), 0)
        for name, layer in layers.items()
    }
    with paddle.no_grad():
        # Rounded once: weights are larger than the activations of one image.
        weights = {name: layer.rounded_weight() for name, layer in layers.items()}

    def compare(name: str, received: Tensor, output: Tensor) -> None:
        _compare(layers[name], received, weights[name], output, found[name])

    with ActivationRecorder(layers, compare).recording(), only_quantized(model, ()):
        for _ in run_images(model, cfg, images, "comparison"):
            pass
    return found


def _compare(
    layer: Any, x: Tensor, weight: Tensor, output: Tensor, found: QuantizationError
) -> None:
    rounded = F.conv2d(
        layer.activation(x),
        weight,
        layer.bias,
        layer._stride,
        layer._padding,
        layer._dilation,
        layer._groups,
        layer._data_format,
    )
    difference = output - rounded
    found.signal += float(output.square().sum())
    found.noise += float(difference.square().sum())
    found.difference = found.difference + difference.sum([0, 2, 3]).numpy().astype(np.float64)
    found.count += output.shape[0] * output.shape[2] * output.shape[3]
