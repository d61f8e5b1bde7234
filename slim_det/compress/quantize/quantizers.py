"""Quantizers: they round a tensor in a simulated detector, and hold its range."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
from paddle import Tensor
from paddle.nn import Layer

from slim_det.compress.quantize.rounding import MIN_RANGE, fake_quantize, fake_quantize_channels


class InputRange(Layer):
    """Rounds the input of one or more convolutions.

    Args:
        bits: Bits of the simulated integer.
    """

    limit: Any

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    def forward(self, values: Tensor) -> Tensor:
        """Adapt the range to ``values``, then round them."""
        self.follow(values)
        return self.rounded(values)

    def follow(self, values: Tensor) -> None:
        """Adapt the range; here it stays as it is."""

    def rounded(self, values: Tensor) -> Tensor:
        """Round ``values`` with the range as it is."""
        return fake_quantize(values, self.range(), self.bits)

    def range(self) -> float:
        """The range, of values before rounding."""
        return float(self.limit)


class ObservedRange(InputRange):
    """An activation's range: a moving average of the largest absolute value of each batch.

    Args:
        name: Of the parameter that holds the range.
        start: Initial range, from a calibration.
        bits: Bits of the simulated integer.
        rate: Weight of the previous average at each step.
        per_batch: Round each training batch to its own range (``abs_max``); evaluation and export
            use the average.
    """

    def __init__(
        self, name: str, start: float, bits: int, rate: float = 0.9, per_batch: bool = False
    ) -> None:
        super().__init__(bits)
        self.rate = rate
        self.per_batch = per_batch
        self.frozen = False
        self._seen: Any = None
        self.limit = fixed_parameter(self, name, np.full([1], start, "float32"))

    def follow(self, values: Tensor) -> None:
        """Move the average, in training and until it is frozen."""
        self._seen = None
        if self.training and not self.frozen:
            self._seen = absolute_max(values)
            limit = self.rate * float(self.limit) + (1 - self.rate) * self._seen
            self.limit.set_value(np.full([1], max(limit, MIN_RANGE), "float32"))

    def rounded(self, values: Tensor) -> Tensor:
        """Round ``values``, with their own range if ``per_batch``."""
        if self.per_batch and self._seen is not None:
            return fake_quantize(values, self._seen, self.bits)
        return super().rounded(values)


class FixedRange(InputRange):
    """A range that never changes.

    Args:
        limit: The range.
        bits: Bits of the simulated integer.
    """

    def __init__(self, limit: float, bits: int) -> None:
        super().__init__(bits)
        self.limit = limit


class SharedRange(InputRange):
    """The range of another convolution that reads the same tensor.

    Args:
        source: Its quantizer; it has run before in every forward.
    """

    def __init__(self, source: InputRange) -> None:
        super().__init__(source.bits)
        # Not a sublayer: a parameter is in the model's state once.
        object.__setattr__(self, "source", source)

    def rounded(self, values: Tensor) -> Tensor:
        """Round ``values`` as the source did, whose range is not adapted a second time."""
        rounded: Tensor = self.source.rounded(values)
        return rounded

    def range(self) -> float:
        """The range of the source."""
        return float(self.source.range())


class AbsMaxWeight(Layer):
    """Rounds a weight; the range is its largest absolute value, or that of every output channel.

    Args:
        bits: Bits of the simulated integer.
        per_channel: A range for every output channel.
    """

    def __init__(self, bits: int, per_channel: bool) -> None:
        super().__init__()
        self.bits = bits
        self.per_channel = per_channel

    def forward(self, weight: Tensor) -> Tensor:
        """Round ``weight`` [Cout, ...]."""
        if not self.per_channel:
            return fake_quantize(weight, absolute_max(weight), self.bits)
        return fake_quantize_channels(weight, channel_max(weight), self.bits)

    def ranges(self, weight: np.ndarray) -> np.ndarray:
        """The ranges that ``weight`` is rounded with, float64 [Cout] or [1]."""
        largest = np.abs(weight.astype(np.float64)).reshape(weight.shape[0], -1).max(axis=1)
        if not self.per_channel:
            largest = largest.max(keepdims=True)
        return np.maximum(largest, MIN_RANGE)


def absolute_max(values: Tensor) -> float:
    """Largest absolute value."""
    with paddle.no_grad():
        # Two reductions take half the time of an absolute value and one reduction.
        return max(float(values.max()), -float(values.min()))


def channel_max(weight: Tensor) -> Tensor:
    """Largest absolute value of every output channel, float [Cout], never zero."""
    with paddle.no_grad():
        # The largest absolute value in one pass.
        largest = paddle.linalg.norm(weight.reshape([weight.shape[0], -1]), np.inf, axis=1)
        return paddle.clip(largest, min=MIN_RANGE)


def fixed_parameter(layer: Layer, name: str, value: np.ndarray) -> Tensor:
    """A parameter that is saved but not trained, like a running statistic."""
    parameter = named_parameter(layer, name, value, trainable=False)
    parameter.stop_gradient = True
    return parameter


def named_parameter(layer: Layer, name: str, value: np.ndarray, **attributes: Any) -> Tensor:
    """A parameter of exactly this name; every model of the process may have it."""
    initializer = paddle.nn.initializer.Assign(value)
    attr = paddle.ParamAttr(name=name, initializer=initializer, **attributes)
    with paddle.utils.unique_name.guard():
        return layer.create_parameter(shape=list(value.shape), attr=attr, dtype="float32")
