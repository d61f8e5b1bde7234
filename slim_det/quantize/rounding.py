"""Rounding to integers and back, with a gradient; the one definition of an integer here.

A range ``r`` and ``b`` bits mean the integers -L to L with L = 2^(b-1) - 1, an integer q standing
for the value q * r / L. Values beyond the range are clipped. Zero is exactly zero.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
from paddle import Tensor
from paddle.autograd import PyLayer

MIN_RANGE = 1e-8
"""Of a tensor or channel that is all zeros, so that nothing is divided by zero."""


def levels(bits: int) -> int:
    """The largest integer of a signed, symmetric type: 127 for 8 bits."""
    return int(2 ** (bits - 1) - 1)


def to_integers(values: np.ndarray, ranges: np.ndarray, bits: int) -> np.ndarray:
    """Round to integers.

    Args:
        values: float array; the first axis is that of the channels.
        ranges: float [C] or [1].
        bits: Of an integer.

    Returns:
        float64 array of whole numbers, of the shape of ``values``.
    """
    limit = levels(bits)
    spread = np.asarray(ranges, np.float64).reshape(-1, *[1] * (values.ndim - 1))
    return np.clip(np.rint(values.astype(np.float64) / spread * limit), -limit, limit)


class _RoundWithin(PyLayer):
    """Fake quantization with one range; the gradient passes straight through (1308.3432)."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, limit: float, bits: int) -> Tensor:
        step = limit / levels(bits)
        # In place on one new tensor: a third of the time of the operator that does the same.
        rounded = paddle.scale(values, 1.0 / step)
        rounded.round_()
        rounded.clip_(-levels(bits), levels(bits))
        return rounded.scale_(step)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class _RoundChannels(PyLayer):
    """The same with a range for every channel of axis 0."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, ranges: Tensor, bits: int) -> Tensor:
        step = ranges.reshape([-1] + [1] * (values.ndim - 1)) / levels(bits)
        rounded = values / step
        rounded.round_()
        rounded.clip_(-levels(bits), levels(bits))
        return rounded * step

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def fake_quantize(values: Tensor, limit: float, bits: int) -> Tensor:
    """Round a tensor to what ``bits`` hold within ``limit``, straight-through gradient.

    Args:
        values: float tensor of any shape.
        limit: The range; values beyond it are clipped.
        bits: Of an integer.
    """
    return _RoundWithin.apply(values, max(limit, MIN_RANGE), bits)


def fake_quantize_channels(values: Tensor, ranges: Tensor, bits: int) -> Tensor:
    """Round a tensor with a range for every channel.

    Args:
        values: float [C, ...].
        ranges: float [C], positive; no gradient reaches them.
        bits: Of an integer.
    """
    return _RoundChannels.apply(values, ranges.detach(), bits)
