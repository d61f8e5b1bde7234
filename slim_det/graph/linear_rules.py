"""Linear operators as matrix products: what they multiply with their weight, output by output.

Each output of a convolution is the product of a *patch* of its input with a matrix made of its
weight. A grouped convolution is several such products side by side: G matrices of D rows (input
channels x kernel pixels, channels first) and M columns (output channels).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from slim_det.graph.op import Op


class LinearRule(Protocol):
    """How one kind of linear operator is written as a matrix product."""

    def in_axis(self, op: Op) -> int:
        """Axis of the weight that reads channels."""

    def out_axis(self, op: Op) -> int:
        """Axis of the weight that makes channels."""

    def matrix(self, op: Op, weight: np.ndarray) -> np.ndarray:
        """The weight as matrices [G, D, M]."""

    def weight(self, op: Op, matrix: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """The inverse of `matrix`, for a weight of this shape."""

    def positions(self, op: Op, arrays: Sequence[np.ndarray], shape: tuple[int, ...]) -> int:
        """How many outputs, each a vector of channels, an image gives.

        Args:
            op: The operator.
            arrays: Data of one image, then what its ``sampling`` slots hold, without batch axis.
            shape: Shape of the weight.
        """

    def patches(
        self, op: Op, arrays: Sequence[np.ndarray], shape: tuple[int, ...], chosen: np.ndarray
    ) -> np.ndarray:
        """The patches of some outputs of an image, [G, P, D].

        Args:
            op: The operator.
            arrays: As for `positions`.
            shape: Shape of the weight.
            chosen: Indices of outputs, row by row, int64 [P].
        """


@dataclass(frozen=True)
class _Window:
    """The geometry of a convolution in both directions (vertical first)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    before: tuple[int, int]
    after: tuple[int, int]
    out: tuple[int, int]

    @classmethod
    def of(cls, op: Op, size_hw: tuple[int, int], kernel: tuple[int, int]) -> _Window:
        """The window of a convolution on an input of this size."""
        stride = _pair(op.attrs.get("strides", [1, 1]))
        dilation, before, after = _border(op, size_hw, kernel, stride)
        span = [d * (k - 1) + 1 for d, k in zip(dilation, kernel)]
        out = [
            (n + b + a - width) // s + 1
            for n, b, a, width, s in zip(size_hw, before, after, span, stride)
        ]
        return cls(kernel, stride, dilation, before, after, _pair(out))

    def corners(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Row and column where the padded input meets the first kernel pixel, int64 [P] each."""
        rows, columns = np.divmod(chosen, self.out[1])
        return rows * self.stride[0], columns * self.stride[1]


def _pair(values: Sequence[int]) -> tuple[int, int]:
    first, second = values
    return int(first), int(second)


class Convolution:
    """A convolution of any stride, dilation, padding and number of groups."""

    def in_axis(self, op: Op) -> int:
        """See `LinearRule.in_axis`."""
        return 1

    def out_axis(self, op: Op) -> int:
        """See `LinearRule.out_axis`."""
        return 0

    def matrix(self, op: Op, weight: np.ndarray) -> np.ndarray:
        """See `LinearRule.matrix`; the weight is [O, I / G, kh, kw]."""
        groups = int(op.attrs.get("groups") or 1)
        return weight.reshape(groups, len(weight) // groups, -1).transpose(0, 2, 1)

    def weight(self, op: Op, matrix: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """See `LinearRule.weight`."""
        return np.ascontiguousarray(matrix.transpose(0, 2, 1)).reshape(shape)

    def positions(self, op: Op, arrays: Sequence[np.ndarray], shape: tuple[int, ...]) -> int:
        """See `LinearRule.positions`."""
        return math.prod(_Window.of(op, _size_hw(op, arrays[0]), _pair(shape[2:])).out)

    def patches(
        self, op: Op, arrays: Sequence[np.ndarray], shape: tuple[int, ...], chosen: np.ndarray
    ) -> np.ndarray:
        """See `LinearRule.patches`."""
        data = _channels_first(op, arrays[0])
        window = _Window.of(op, _pair(data.shape[1:]), _pair(shape[2:]))
        sides = zip(window.before, window.after)
        padded = np.pad(data, [(0, 0), *sides])
        (kernel_h, kernel_w), (dilation_h, dilation_w) = window.kernel, window.dilation
        rows, columns = window.corners(chosen)
        rows = rows[:, None, None] + dilation_h * np.arange(kernel_h)[None, :, None]
        columns = columns[:, None, None] + dilation_w * np.arange(kernel_w)[None, None, :]
        return _grouped(op, padded[:, rows, columns])


class DeformableConvolution(Convolution):
    """A convolution that reads between pixels (Zhu et al. 2018, arXiv 1811.11168).

    Given the offsets, its output is linear in its weight: a patch holds the interpolated values.
    """

    def patches(
        self, op: Op, arrays: Sequence[np.ndarray], shape: tuple[int, ...], chosen: np.ndarray
    ) -> np.ndarray:
        """See `LinearRule.patches`; offsets are [2 x parts x kh x kw, H, W], y before x."""
        data, offsets = arrays[0], arrays[1]
        window = _Window.of(op, _pair(data.shape[1:]), _pair(shape[2:]))
        parts = int(op.attrs.get("deformable_groups") or 1)
        taps = math.prod(window.kernel)
        shift = offsets.reshape(parts, taps, 2, -1)[..., chosen]  # [parts, taps, 2, P]
        corner_rows, corner_columns = window.corners(chosen)
        tap_rows, tap_columns = np.divmod(np.arange(taps), window.kernel[1])
        rows = (corner_rows - window.before[0])[None, None, :] + (
            window.dilation[0] * tap_rows[None, :, None] + shift[:, :, 0]
        )
        columns = (corner_columns - window.before[1])[None, None, :] + (
            window.dilation[1] * tap_columns[None, :, None] + shift[:, :, 1]
        )
        weights = np.ones((parts, taps, len(chosen)))
        if len(arrays) > 2:
            weights = arrays[2].reshape(parts, taps, -1)[..., chosen]
        channels = data.reshape(parts, -1, *data.shape[1:])
        values = [
            _interpolated(channels[part], rows[part], columns[part]) * weights[part]
            for part in range(parts)
        ]
        patches = np.concatenate(values).transpose(0, 2, 1)  # [I, P, taps]
        return _grouped(op, patches.reshape(len(data), len(chosen), *window.kernel))


class TransposedConvolution:
    """A transposed convolution; its weight is [I, O / G, kh, kw].

    It is a convolution of the input with ``stride - 1`` zeros between its pixels. A depthwise one
    makes one channel of each, so the first axis of its weight holds its outputs too.
    """

    def in_axis(self, op: Op) -> int:
        """See `LinearRule.in_axis`."""
        return 1 if op.type.startswith("depthwise") else 0

    def out_axis(self, op: Op) -> int:
        """See `LinearRule.out_axis`."""
        return 1 - self.in_axis(op)

    def matrix(self, op: Op, weight: np.ndarray) -> np.ndarray:
        """See `LinearRule.matrix`."""
        groups = int(op.attrs.get("groups") or 1)
        parts = weight.reshape(groups, len(weight) // groups, *weight.shape[1:])
        return parts.transpose(0, 1, 3, 4, 2).reshape(groups, -1, weight.shape[1])

    def weight(self, op: Op, matrix: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """See `LinearRule.weight`."""
        inputs, outputs, *kernel = shape
        rows = matrix.reshape(inputs, *kernel, outputs)
        return np.ascontiguousarray(rows.transpose(0, 3, 1, 2))

    def positions(self, op: Op, arrays: Sequence[np.ndarray], shape: tuple[int, ...]) -> int:
        """See `LinearRule.positions`."""
        return math.prod(self._out_hw(op, arrays[0], shape))

    def patches(
        self, op: Op, arrays: Sequence[np.ndarray], shape: tuple[int, ...], chosen: np.ndarray
    ) -> np.ndarray:
        """See `LinearRule.patches`."""
        data = _channels_first(op, arrays[0])
        stride, kernel = _pair(op.attrs["strides"]), _pair(shape[2:])
        dilation, before, _ = _border(op, _pair(data.shape[1:]), kernel, stride)
        reach = [d * (k - 1) for d, k in zip(dilation, kernel)]
        spread = [(n - 1) * s + 1 for n, s in zip(data.shape[1:], stride)]
        out = self._out_hw(op, arrays[0], shape)
        # Output p takes pixel p + padding - dilation * k of the spread input for kernel pixel k.
        after = [max(0, o - 1 + b - n + 1) for o, b, n in zip(out, before, spread)]
        padded = np.zeros((len(data), *(r + n + a for r, n, a in zip(reach, spread, after))))
        down, right = (slice(r, r + n, s) for r, n, s in zip(reach, spread, stride))
        padded[:, down, right] = data
        rows, columns = np.divmod(chosen, out[1])
        rows = (rows + before[0] + reach[0])[:, None, None]
        columns = (columns + before[1] + reach[1])[:, None, None]
        rows = rows - dilation[0] * np.arange(kernel[0])[None, :, None]
        columns = columns - dilation[1] * np.arange(kernel[1])[None, None, :]
        return _grouped(op, padded[:, rows, columns])

    def _out_hw(self, op: Op, data: np.ndarray, shape: tuple[int, ...]) -> tuple[int, int]:
        fixed = list(op.attrs.get("output_size") or [])
        if fixed:
            return _pair(fixed)
        size, stride, kernel = _size_hw(op, data), _pair(op.attrs["strides"]), _pair(shape[2:])
        dilation, before, after = _border(op, size, kernel, stride)
        extra = list(op.attrs.get("output_padding") or [0, 0])
        return _pair(
            [
                (n - 1) * s - b - a + d * (k - 1) + 1 + x
                for n, s, b, a, d, k, x in zip(size, stride, before, after, dilation, kernel, extra)
            ]
        )


class Product:
    """A matrix product with a weight [I, O]; with ``trans_y`` [O, I]."""

    def in_axis(self, op: Op) -> int:
        """See `LinearRule.in_axis`."""
        return 1 if op.attrs.get("trans_y") else 0

    def out_axis(self, op: Op) -> int:
        """See `LinearRule.out_axis`."""
        return 1 - self.in_axis(op)

    def matrix(self, op: Op, weight: np.ndarray) -> np.ndarray:
        """See `LinearRule.matrix`."""
        return (weight.T if op.attrs.get("trans_y") else weight)[None]

    def weight(self, op: Op, matrix: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """See `LinearRule.weight`."""
        return np.ascontiguousarray(matrix[0].T if op.attrs.get("trans_y") else matrix[0])

    def positions(self, op: Op, arrays: Sequence[np.ndarray], shape: tuple[int, ...]) -> int:
        """See `LinearRule.positions`."""
        return math.prod(arrays[0].shape[:-1])

    def patches(
        self, op: Op, arrays: Sequence[np.ndarray], shape: tuple[int, ...], chosen: np.ndarray
    ) -> np.ndarray:
        """See `LinearRule.patches`."""
        return arrays[0].reshape(-1, arrays[0].shape[-1])[None, chosen]


def _channels_first(op: Op, data: np.ndarray) -> np.ndarray:
    """One image as [C, H, W]."""
    return np.moveaxis(data, -1, 0) if op.attrs.get("data_format") == "NHWC" else data


def _size_hw(op: Op, data: np.ndarray) -> tuple[int, int]:
    return _pair(_channels_first(op, data).shape[1:])


def _border(
    op: Op, size_hw: tuple[int, int], kernel: tuple[int, int], stride: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Dilation, and padding before and after, of a convolution or a transposed one.

    ``SAME`` is what Paddle makes of it: without dilation, whatever the attribute says.
    """
    dilation = _pair(op.attrs.get("dilations", [1, 1]))
    algorithm = op.attrs.get("padding_algorithm", "EXPLICIT")
    if algorithm == "VALID":
        return dilation, (0, 0), (0, 0)
    if algorithm == "SAME":
        need = [
            max((math.ceil(n / s) - 1) * s + k - n, 0) for n, s, k in zip(size_hw, stride, kernel)
        ]
        before, after = [n // 2 for n in need], [n - n // 2 for n in need]
        return (1, 1), _pair(before), _pair(after)
    padding = list(op.attrs.get("paddings", [0, 0]))
    if len(padding) == 2:
        return dilation, _pair(padding), _pair(padding)
    return dilation, _pair(padding[::2]), _pair(padding[1::2])


def _grouped(op: Op, taken: np.ndarray) -> np.ndarray:
    """[I, P, kh, kw] -> [G, P, D]."""
    groups = int(op.attrs.get("groups") or 1)
    inputs, count = taken.shape[:2]
    parts = taken.reshape(groups, inputs // groups, count, -1).transpose(0, 2, 1, 3)
    return parts.reshape(groups, count, -1)


def _interpolated(data: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Bilinear values between the pixels of [C, H, W], zero outside: [C, *rows.shape]."""
    height, width = data.shape[1:]
    top, left = np.floor(rows).astype(int), np.floor(columns).astype(int)
    total = np.zeros((len(data), *rows.shape))
    for down in (0, 1):
        for right in (0, 1):
            r, c = top + down, left + right
            share = (1 - np.abs(rows - r)) * (1 - np.abs(columns - c))
            inside = (r >= 0) & (r < height) & (c >= 0) & (c < width)
            pixel = data[:, r.clip(0, height - 1), c.clip(0, width - 1)]
            total += pixel * (share * inside)
    return total
