"""A convolution with rounded weights and inputs, as in its int8 kernel."""

from __future__ import annotations

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor
from paddle.nn import Layer

from slim_det.compress.quantize.rounding import MIN_RANGE


class QuantConv2D(paddle.nn.Conv2D):
    """A `Conv2D` of a detector that simulates its int8 kernel.

    It is made from an existing layer, in place (`quantize_convolution`). While a program is traced
    it is a float convolution; the export writes the integers into the program.

    Batch norm is folded into the deployed weights. A range for every output channel scales with
    its channel, so rounding before or after folding gives the same integers; with a single range
    the weight has to be rounded in its folded form.

    Attributes:
        activation: Quantizer of the input.
        weights: Quantizer of the weight.
    """

    activation: Layer
    weights: Layer

    def forward(self, x: Tensor) -> Tensor:
        """Convolve; [N, Cin, H, W] to [N, Cout, H', W']."""
        if not paddle.in_dynamic_mode():
            return super().forward(x)
        is_rounded = x is self.__dict__.pop("_rounded_input", None)
        return convolve(self, x if is_rounded else self.activation(x), self.rounded_weight())

    def take_rounded(self, x: Tensor) -> None:
        """Announce that the next input is this tensor, already rounded by `activation`."""
        object.__setattr__(self, "_rounded_input", x)

    def rounded_weight(self) -> Tensor:
        """The weight, rounded so that it is integers once batch norm is folded."""
        factor = None if self.weights.per_channel else fold_factor(self.norm)
        if factor is None:
            return self.weights(self.weight)
        factor = factor.reshape([-1, 1, 1, 1])
        return self.weights(self.weight * factor) / factor

    def folded_weight(self) -> np.ndarray:
        """The float weight with its batch norm folded into it, float64."""
        return folded_weight(self, self.norm)

    def weight_ranges(self) -> np.ndarray:
        """Ranges of the folded weight, float64 [Cout] or [1]."""
        if not self.weights.per_channel:
            return np.asarray(self.weights.ranges(self.folded_weight()))
        ranges = np.asarray(self.weights.ranges(self.weight.numpy().astype(np.float64)))
        factor = fold_factor(self.norm)
        if factor is None:
            return ranges
        return np.maximum(ranges * np.abs(factor.numpy().astype(np.float64)), MIN_RANGE)

    @property
    def norm(self) -> Layer | None:
        """The batch norm that is folded into this layer."""
        return self.__dict__.get("_folded_norm")


def convolve(layer: paddle.nn.Conv2D, x: Tensor, weight: Tensor) -> Tensor:
    """What a convolution gives of ``x`` with another weight."""
    return F.conv2d(
        x,
        weight,
        layer.bias,
        layer._stride,
        layer._padding,
        layer._dilation,
        layer._groups,
        layer._data_format,
    )


def fold_factor(norm: Layer | None) -> Tensor | None:
    """Factor of batch norm for each output channel, float [Cout], never zero; None without one."""
    if norm is None:
        return None
    with paddle.no_grad():
        factor = norm.weight / paddle.sqrt(norm._variance + norm._epsilon)
        tiny = paddle.full_like(factor, 1e-12)
        return paddle.where(factor.abs() < tiny, tiny, factor)


def folded_weight(layer: paddle.nn.Conv2D, norm: Layer | None) -> np.ndarray:
    """A convolution's weight with a batch norm folded into it, float64, of the weight's shape."""
    weight = layer.weight.numpy().astype(np.float64)
    factor = fold_factor(norm)
    return weight if factor is None else weight * factor.numpy().reshape(-1, 1, 1, 1)


def quantize_convolution(
    layer: paddle.nn.Conv2D, activation: Layer, weights: Layer, norm: Layer | None
) -> None:
    """Make a convolution simulate its int8 kernel.

    The layer stays the same object: ppdet's heads keep lists of their convolutions beside the
    sublayers, and a replacement would be missing there.

    Args:
        layer: The convolution.
        activation: Quantizer of its input.
        weights: Quantizer of its weight.
        norm: Batch norm that alone reads its output, if any.
    """
    layer.__class__ = QuantConv2D
    layer.activation = activation
    layer.weights = weights
    # Not a sublayer: it belongs to another part of the model.
    object.__setattr__(layer, "_folded_norm", norm)


def release_convolution(layer: QuantConv2D) -> None:
    """Make a layer a float convolution again."""
    del layer.activation
    del layer.weights
    object.__delattr__(layer, "_folded_norm")
    layer.__class__ = paddle.nn.Conv2D
