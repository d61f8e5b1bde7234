"""Trained ranges: PACT (1805.06085) and LSQ (1902.08153)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import paddle
from paddle import Tensor
from paddle.autograd import PyLayer
from paddle.nn import Layer

from slim_det.compress.quantize.quantizers import InputRange, named_parameter
from slim_det.compress.quantize.rounding import MIN_RANGE, rounded_channels, rounded_within
from slim_det.graph.integers import levels

CLIP_DECAY = 1e-4
"""L2 decay of PACT's range, as in the paper: a range that clips nothing shrinks."""


class _RoundClipped(PyLayer):
    """Fake quantization with a learned range; its gradient is of clipped values (PACT, eq. 3)."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, parameter: Tensor, limit: float, bits: int) -> Tensor:
        rounded = rounded_within(values, limit, bits)
        ctx.save_for_backward(values, rounded)
        ctx.limit = limit
        ctx.wanted = not values.stop_gradient, not parameter.stop_gradient
        return rounded

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        values, rounded = ctx.saved_tensor()
        to_values, to_range = ctx.wanted
        inside = _inside(values, ctx.limit, gradient)
        of_range = None
        if to_range:
            # Where it was clipped, the rounded value is the range with a sign.
            of_range = (_products(gradient, rounded) - _products(inside, rounded)) / ctx.limit
        return inside if to_values else None, of_range


class _RoundSteps(PyLayer):
    """Fake quantization with learned steps; gradient of LSQ, section 2.1.

    Of a value v that is rounded to r = q s, the step s gets (r - v) / s where v is within the
    range, and r / s, the largest integer with its sign, where v is clipped.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, step: Tensor, bits: int, scale: float) -> Tensor:
        largest = levels(bits)
        if step.size == 1:
            limit: Any = max(float(step) * largest, MIN_RANGE)
            rounded = rounded_within(values, limit, bits)
        else:
            limit = paddle.clip(step * largest, min=MIN_RANGE)
            rounded = rounded_channels(values, limit, bits)
        ctx.save_for_backward(values, rounded)
        ctx.limit, ctx.scale = limit, scale * largest
        ctx.wanted = not values.stop_gradient, not step.stop_gradient
        return rounded

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        values, rounded = ctx.saved_tensor()
        to_values, to_step = ctx.wanted
        single = isinstance(ctx.limit, float)
        if single:
            inside = _inside(values, ctx.limit, gradient)
        else:
            shares = values / ctx.limit.reshape([-1] + [1] * (values.ndim - 1))
            inside = _inside(shares, 1.0, gradient)
        of_step = None
        if to_step:
            both = _products(gradient, rounded, single) - _products(inside, values, single)
            of_step = both * ctx.scale / ctx.limit
        return inside if to_values else None, of_step


class _Learned(Layer):
    """A quantizer whose range is trained, and can be frozen."""

    @property
    def frozen(self) -> bool:
        """Whether the range stays as it is."""
        return not any(parameter.optimize_attr["learning_rate"] for parameter in self.parameters())

    @frozen.setter
    def frozen(self, value: bool) -> None:
        # Its rate and not its gradient: so the optimizer keeps the state that its checkpoint must
        # have, and the remaining momentum changes nothing.
        for parameter in self.parameters():
            parameter.optimize_attr["learning_rate"] = 0.0 if value else 1.0


class LearnedClip(_Learned, InputRange):
    """A trained range of an activation: the value at which PACT clips, on both sides.

    Args:
        name: Of the parameter that holds the range.
        start: Initial range, from a calibration.
        bits: Bits of the simulated integer.
    """

    def __init__(self, name: str, start: float, bits: int) -> None:
        super().__init__(bits)
        self.limit = trained_parameter(self, name, np.full([1], start, "float32"), CLIP_DECAY)

    def rounded(self, values: Tensor) -> Tensor:
        """Round ``values``; the range learns, unless it is frozen."""
        keep_positive(self.limit, MIN_RANGE)
        return _RoundClipped.apply(values, self.limit, self.range(), self.bits)

    def range(self) -> float:
        """The range, of values before rounding."""
        return max(float(self.limit), MIN_RANGE)


class LearnedStep(_Learned, InputRange):
    """A trained range of an activation: LSQ learns the step between two integers.

    It is made as a `LearnedClip` is. The gradient is scaled by 1 / sqrt(N L), with N values of an
    image and the largest integer L, so that a step changes in proportion to its size as weights do.
    """

    def __init__(self, name: str, start: float, bits: int) -> None:
        super().__init__(bits)
        value = np.full([1], start / levels(bits), "float32")
        self.step = trained_parameter(self, name, value, 0.0)

    def rounded(self, values: Tensor) -> Tensor:
        """Round ``values`` [N, ...]; the step learns, unless it is frozen."""
        keep_positive(self.step, MIN_RANGE / levels(self.bits))
        count = values.size // max(values.shape[0], 1)
        return _RoundSteps.apply(values, self.step, self.bits, gradient_scale(count, self.bits))

    def range(self) -> float:
        """The range, of values before rounding."""
        return max(float(self.step) * levels(self.bits), MIN_RANGE)


class LearnedWeightStep(_Learned):
    """A weight's range that LSQ trains, of the tensor or of every output channel.

    In evaluation the range of a channel ends at its largest weight: engines round to that, and
    would round integers that stay below 127 once more.

    Args:
        name: Of the parameter that holds the steps.
        start: Initial ranges, float [Cout] or [1].
        bits: Bits of the simulated integer.
        per_channel: A range for every output channel.
    """

    def __init__(self, name: str, start: np.ndarray, bits: int, per_channel: bool) -> None:
        super().__init__()
        self.bits = bits
        self.per_channel = per_channel
        value = (start / levels(bits)).astype("float32")
        self.steps = trained_parameter(self, name, value, 0.0)

    def forward(self, weight: Tensor) -> Tensor:
        """Round ``weight`` [Cout, ...]."""
        keep_positive(self.steps, MIN_RANGE / levels(self.bits))
        scale = gradient_scale(weight.size // self.steps.size, self.bits)
        steps = self.steps
        if self.per_channel and not self.training:
            ranges = self.ranges(weight.numpy()) / levels(self.bits)
            steps = paddle.to_tensor(ranges.astype("float32"))
        return _RoundSteps.apply(weight, steps, self.bits, scale)

    def ranges(self, weight: np.ndarray) -> np.ndarray:
        """The ranges, float64 [Cout] or [1].

        Args:
            weight: float [Cout, ...].
        """
        ranges = self.steps.numpy().astype(np.float64) * levels(self.bits)
        if self.per_channel:
            largest = np.abs(weight.reshape(weight.shape[0], -1)).max(axis=1)
            ranges = np.minimum(ranges, largest)
        return np.maximum(ranges, MIN_RANGE)


def gradient_scale(count: int, bits: int) -> float:
    """Factor of the gradient of a step in LSQ (section 2.2).

    Args:
        count: Values that the step rounds: of a weight, or of an activation of one image.
        bits: Bits of the simulated integer.
    """
    return 1.0 / math.sqrt(max(count, 1) * levels(bits))


def keep_positive(parameter: Tensor, minimum: float) -> None:
    """Raise values that an optimizer's step has made smaller than ``minimum``."""
    with paddle.no_grad():
        if float(parameter.min()) < minimum:
            parameter.set_value(paddle.clip(parameter, min=minimum))


def trained_parameter(layer: Layer, name: str, value: np.ndarray, decay: float) -> Tensor:
    """A trained parameter with an L2 decay of its own, in place of the optimizer's."""
    return named_parameter(layer, name, value, regularizer=paddle.regularizer.L2Decay(decay))


# Makes any difference between two floats at least 1, and overflows for none that a model holds.
_HUGE = 1e30


def _inside(values: Tensor, limit: float, gradient: Tensor) -> Tensor:
    """The gradient where nothing is clipped; zero elsewhere and at the range itself."""
    # In place on one new tensor: half the time of a comparison, its conversion and a product.
    inside = values.abs()
    inside.scale_(-_HUGE, bias=-limit, bias_after_scale=False)
    inside.clip_(0.0, 1.0)
    return inside.multiply_(gradient)


def _products(left: Tensor, right: Tensor, single: bool = True) -> Tensor:
    """Sum of the products of two tensors, float [1]; or of every row of axis 0, [C]."""
    if single:
        return paddle.dot(left.flatten(), right.flatten()).reshape([1])
    rows = left.shape[0]
    return paddle.bmm(left.reshape([rows, 1, -1]), right.reshape([rows, -1, 1])).flatten()
