"""How far the integers of each convolution are from its floats."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle
from paddle import Tensor

from slim_det.compress.images import run_images
from slim_det.compress.quantize.layers import QuantConv2D, convolve
from slim_det.compress.quantize.model import quantized_layers
from slim_det.graph.activations import ActivationRecorder


@dataclass
class QuantizationError:
    """The error of a convolution with integers, on the inputs of the float model.

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
        """Mean of float minus integer output in every channel, [Cout]."""
        return self.difference / max(self.count, 1)

    @property
    def sqnr_db(self) -> float:
        """Signal to quantization noise in decibels; infinite where there is no noise."""
        if self.noise == 0:
            return float("inf")
        return float(10 * np.log10(self.signal / self.noise)) if self.signal else -float("inf")


@contextlib.contextmanager
def only_quantized(model: paddle.nn.Layer, names: Collection[str]) -> Iterator[None]:
    """Inside the context, only these of the quantized layers compute with integers.

    Args:
        model: A quantized model.
        names: Module paths; if there are none, the complete model is in float.
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
    """Compare every quantized convolution with its float form.

    The float model runs; each convolution also runs with integers on the same input. So the error
    is the layer's own and not that of the layers before it.

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
        layer, error = layers[name], found[name]
        difference = output - convolve(layer, layer.activation(received), weights[name])
        error.signal += float(output.square().sum())
        error.noise += float(difference.square().sum())
        error.difference += difference.sum([0, 2, 3]).numpy().astype(np.float64)
        error.count += output.shape[0] * output.shape[2] * output.shape[3]

    with ActivationRecorder(layers, compare).recording(), only_quantized(model, ()):
        for _ in run_images(model, cfg, images, "comparison"):
            pass
    return found
