"""Sides that follow from the size of the image are known, those that follow from values are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import paddle
import pytest
from paddle.nn import Conv2D

from slim_det.graph.cost import macs_by_parameter
from slim_det.graph.trace import Trace
from tests.support import trace_plain


class Reshaped(paddle.nn.Layer):
    """A convolution 3->4, a reshape that is told sides by tensors, and a convolution 4->5."""

    def __init__(self, reshape: Callable[[paddle.Tensor, Any], paddle.Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.reshape = Conv2D(3, 4, 1), Conv2D(4, 5, 1), reshape

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """Read the sides from the tensor that is reshaped."""
        x = self.first(x)
        return self.last(self.reshape(x, paddle.shape(x)))


def traced(reshape: Callable[[paddle.Tensor, Any], paddle.Tensor]) -> Trace:
    """Traced on 4x6 pixels."""
    return trace_plain(Reshaped(reshape), 1, 3, 4, 6)


@pytest.mark.parametrize(
    ("reshape", "shape"),
    [
        (lambda x, s: paddle.reshape(x, [s[0:1], 2, 2, s[2:3], s[3:4]]).flatten(1, 2), (4, 6)),
        (lambda x, s: paddle.reshape(x, [s[0:1], 4, -1, s[2:3]]), (6, 4)),
        (lambda x, s: paddle.reshape(x, [-1, s[1:2], 2, s[2:3] * 0 + 12]), None),
        (lambda x, s: paddle.reshape(x, [0, 4, s[3:4], -1]), (6, 4)),
        (lambda x, s: paddle.reshape(x, [0, 4, s[3:4], -1]).transpose([0, 1, 3, 2]), (4, 6)),
    ],
)
def test_sides_from_the_shape_of_a_tensor(reshape: Any, shape: tuple[int, int] | None) -> None:
    """By hand: 24 pixels, however they lie. Arithmetic on sides is not followed."""
    trace = traced(reshape)
    expected = {"first.weight": 24 * 3 * 4}
    if shape:
        assert trace.shapes[trace.outputs[0]] == (1, 5, *shape)
        expected["last.weight"] = 24 * 4 * 5
    assert macs_by_parameter(trace) == expected


def test_a_size_that_depends_on_values_stays_open() -> None:
    """And what is computed on it is not counted, instead of with negative numbers."""

    def bright(x: paddle.Tensor, sides: Any) -> paddle.Tensor:
        rows = paddle.nonzero(x[0, 0, :, 0])[:, 0]
        return paddle.gather(x, rows, axis=2)

    trace = traced(bright)
    assert trace.shapes[trace.outputs[0]] == (1, 5, -1, 6)
    assert macs_by_parameter(trace) == {"first.weight": 24 * 3 * 4}
