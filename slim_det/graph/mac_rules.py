"""How often operators multiply each number of their weight, for one image."""

from __future__ import annotations

import math
from collections.abc import Callable

from slim_det.graph.op import Op

Shape = tuple[int, ...]

MacRule = Callable[[Op, Shape, Shape, Shape], int]
"""Uses of each number of a weight, from the shapes of input, weight and output."""


def each_output_pixel(op: Op, data: Shape, weight: Shape, result: Shape) -> int:
    """A convolution, grouped or not: every output pixel uses each number once."""
    return _pixels(op, result)


def each_input_pixel(op: Op, data: Shape, weight: Shape, result: Shape) -> int:
    """A transposed convolution: every input pixel uses each number once."""
    return _pixels(op, data)


def each_row(op: Op, data: Shape, weight: Shape, result: Shape) -> int:
    """A matrix product: each row of the left operand uses each number of its matrix once."""
    columns = 1 if len(weight) == 1 else weight[-2 if op.attrs.get("trans_y") else -1]
    return math.prod(result) // (columns * math.prod(weight[:-2]))


def _pixels(op: Op, shape: Shape) -> int:
    """Pixels of all maps: of one image, or of each box of a two-stage detector."""
    sides = shape[1:3] if op.attrs.get("data_format") == "NHWC" else shape[2:]
    return shape[0] * math.prod(sides)
