"""Linear operators as matrix products: patches times matrix is what Paddle computes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle
import pytest
from paddle.nn import Conv2D, Conv2DTranspose, Linear
from paddle.static import InputSpec
from paddle.vision.ops import DeformConv2D

from slim_det.graph.linear_rules import LinearRule
from slim_det.graph.op import Op
from slim_det.graph.operators import declared
from slim_det.graph.trace import Trace, trace_layer
from tests.support import assert_same_sums

SHAPE = (4, 7, 9)
"""Channels, height and width of most inputs; odd, and not square."""


@dataclass(frozen=True)
class Case:
    """One traced operator with its data.

    Attributes:
        op: The operator.
        arrays: What its rule reads of one image.
        weight: Value of its weight.
        result: What Paddle computes, [G, P, M] in the order of the rule.
    """

    op: Op
    arrays: list[np.ndarray]
    weight: np.ndarray
    result: np.ndarray

    @property
    def rule(self) -> LinearRule:
        rule = declared(self.op).linear
        assert rule is not None
        return rule

    def patches(self, chosen: Any) -> np.ndarray:
        return self.rule.patches(self.op, self.arrays, self.weight.shape, np.asarray(chosen))

    def positions(self) -> int:
        return self.rule.positions(self.op, self.arrays, self.weight.shape)


class OfSize(Conv2DTranspose):
    """A transposed convolution that is told the size of its output."""

    size = [14, 17]

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return super().forward(x, output_size=self.size)


class Turned(paddle.nn.Layer):
    """A matrix product with a weight [O, I]."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = self.create_parameter([outputs, inputs])

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return paddle.matmul(x, self.weight, transpose_y=True)


def linear_op(trace: Trace) -> Op:
    (found,) = [op for op in trace.ops if declared(op).linear is not None]
    return found


def made(layer: paddle.nn.Layer, *arrays: np.ndarray, channels_last: bool = False) -> Case:
    """Trace a layer of one linear operator, and run it on one image."""
    rng = np.random.default_rng(0)
    weight = layer.weight
    weight.set_value(rng.normal(size=weight.shape).astype("float32"))
    names = [f"x{i}" for i in range(len(arrays))]
    specs = [InputSpec(list(a.shape), "float32", name) for a, name in zip(arrays, names)]
    op = linear_op(trace_layer(layer, specs))
    with paddle.no_grad():
        result = layer(*map(paddle.to_tensor, arrays)).numpy()[0]
    groups = int(op.attrs.get("groups") or 1)
    rows = result if channels_last else np.moveaxis(result, 0, -1)
    rows = rows.reshape(-1, groups, rows.shape[-1] // groups).transpose(1, 0, 2)
    return Case(op, [array[0] for array in arrays], weight.numpy(), rows)


def pixels(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(1, *shape)).astype(np.float32)


def convolution(outputs: int = 6, inputs: int = SHAPE[0], kernel: Any = 3, **settings: Any) -> Case:
    layer = Conv2D(inputs, outputs, kernel, bias_attr=False, **settings)
    last = settings.get("data_format") == "NHWC"
    shape = (*SHAPE[1:], inputs) if last else (inputs, *SHAPE[1:])
    return made(layer, pixels(*shape), channels_last=last)


def transposed(outputs: int = 5, kernel: Any = 3, kind: Any = Conv2DTranspose, **more: Any) -> Case:
    last = more.get("data_format") == "NHWC"
    layer = kind(SHAPE[0], outputs, kernel, bias_attr=False, **more)
    shape = (*SHAPE[1:], SHAPE[0]) if last else SHAPE
    return made(layer, pixels(*shape), channels_last=last)


def deformable(
    version: int = 2, kernel: Any = (3, 3), far: float = 1.0, parts: int = 1, **more: Any
) -> Case:
    """Offsets have this standard deviation, in pixels."""
    settings = {"padding": 1, **more}
    size = Conv2D(SHAPE[0], 4, kernel, **settings)(paddle.zeros([1, *SHAPE])).shape[2:]
    layer = DeformConv2D(SHAPE[0], 4, kernel, deformable_groups=parts, bias_attr=False, **settings)
    taps = parts * kernel[0] * kernel[1]
    given = [pixels(*SHAPE), far * pixels(2 * taps, *size, seed=2), pixels(taps, *size, seed=3)]
    return made(layer, *given[: version + 1])


def product(*shape: int, kind: Any = Linear) -> Case:
    """Vectors of `shape` times a matrix of four columns."""
    layer = kind(shape[-1], 4, bias_attr=False) if kind is Linear else kind(shape[-1], 4)
    return made(layer, pixels(*shape), channels_last=True)


CASES: dict[str, Callable[[], Case]] = {
    "one pixel": lambda: convolution(kernel=1),
    "three by three": lambda: convolution(padding=1),
    "without padding": lambda: convolution(kernel=(1, 5)),
    "strided": lambda: convolution(stride=2, padding=1),
    "strides that differ": lambda: convolution(kernel=(3, 2), stride=(2, 3), padding=(0, 1)),
    "strided one pixel": lambda: convolution(kernel=1, stride=2),
    "dilated": lambda: convolution(dilation=2, padding=2),
    "dilations that differ": lambda: convolution(dilation=(1, 3), stride=(1, 2), padding=(2, 3)),
    "four paddings": lambda: convolution(padding=[0, 2, 1, 3]),
    "four paddings, strided": lambda: convolution(padding=[2, 0, 0, 1], stride=2),
    "same": lambda: convolution(padding="SAME"),
    "same, even kernel": lambda: convolution(kernel=(2, 4), padding="SAME"),
    "same, strided": lambda: convolution(padding="SAME", stride=2),
    "same, dilated": lambda: convolution(padding="SAME", dilation=2),
    "valid": lambda: convolution(padding="VALID", stride=2),
    "grouped": lambda: convolution(groups=2, padding=1),
    "grouped one pixel": lambda: convolution(groups=2, kernel=1, stride=2),
    "depthwise": lambda: convolution(4, groups=4, padding=1),
    "depthwise, multiplied": lambda: convolution(12, groups=4, padding=1, stride=2),
    "of one channel": lambda: convolution(3, inputs=1, padding=1),
    "to one channel": lambda: convolution(1),
    "channels last": lambda: convolution(data_format="NHWC", padding=1, stride=(1, 2)),
    "channels last, grouped": lambda: convolution(data_format="NHWC", groups=2, padding="SAME"),
    "transposed": lambda: transposed(kernel=2, stride=2),
    "transposed, overlapping": lambda: transposed(kernel=(3, 4), stride=2, padding=1),
    "transposed, stride one": lambda: transposed(padding=(0, 1)),
    "transposed, gaps": lambda: transposed(kernel=(1, 2), stride=3),
    "transposed, output padding": lambda: transposed(stride=2, padding=1, output_padding=1),
    "transposed, output paddings": lambda: transposed(stride=(2, 3), output_padding=[1, 2]),
    "transposed, output size": lambda: transposed(kind=OfSize, stride=2, padding=1),
    "transposed, dilated": lambda: transposed(stride=2, padding=1, dilation=(2, 3)),
    "transposed, four paddings": lambda: transposed(stride=2, padding=[0, 2, 1, 0]),
    "transposed, same": lambda: transposed(stride=2, padding="SAME"),
    "transposed, valid": lambda: transposed(stride=2, padding="VALID"),
    "transposed, channels last": lambda: transposed(stride=2, padding=1, data_format="NHWC"),
    "transposed, grouped": lambda: transposed(6, stride=2, padding=1, groups=2),
    "transposed, depthwise": lambda: transposed(4, stride=2, padding=1, groups=4),
    "deformable": lambda: deformable(),
    "deformable, without mask": lambda: deformable(1),
    "deformable, far": lambda: deformable(far=6.0),
    "deformable, far, without mask": lambda: deformable(1, far=6.0),
    "deformable, not square": lambda: deformable(kernel=(1, 3), padding=(0, 1), stride=(2, 1)),
    "deformable, dilated": lambda: deformable(stride=2, dilation=2, padding=2),
    "deformable, grouped": lambda: deformable(groups=2),
    "deformable, parts": lambda: deformable(parts=2),
    "deformable, parts, without mask": lambda: deformable(1, parts=4, far=3.0),
    "deformable, groups and parts": lambda: deformable(groups=2, parts=4, stride=2),
    "vectors": lambda: product(5),
    "rows of vectors": lambda: product(3, 5),
    "channels of pixels": lambda: product(2, 3, 5),
    "turned weight": lambda: product(5, kind=Turned),
    "turned weight, rows": lambda: product(3, 5, kind=Turned),
}


@pytest.fixture(params=CASES, ids=str)
def case(request: pytest.FixtureRequest, ppdet_registered: None) -> Case:
    return CASES[request.param]()


def test_patches_times_matrix(case: Case) -> None:
    """At all positions, and at some of them the same rows: bit for bit, they are only copied."""
    positions = case.positions()
    assert positions == case.result.shape[1]
    every = case.patches(np.arange(positions))
    matrix = case.rule.matrix(case.op, case.weight)
    assert_same_sums(every @ matrix, case.result)
    rng = np.random.default_rng(4)
    some = rng.permutation(positions)[: max(positions // 3, 1)]
    assert np.array_equal(case.patches(some), every[:, some])


def test_the_weight_comes_back(case: Case) -> None:
    matrix = case.rule.matrix(case.op, case.weight)
    restored = case.rule.weight(case.op, matrix, case.weight.shape)
    assert restored.shape == case.weight.shape
    assert np.array_equal(restored, case.weight)
    assert restored.flags.c_contiguous


def test_axes_of_channels(case: Case) -> None:
    """An input channel is a block of rows, an output channel a column."""
    rule, op, shape = case.rule, case.op, case.weight.shape
    taps = case.weight.size // (shape[rule.in_axis(op)] * shape[rule.out_axis(op)])
    changed = np.zeros_like(case.weight)
    np.moveaxis(changed, rule.in_axis(op), 0)[-1] = 1.0
    touched = rule.matrix(op, changed)
    assert touched[-1, -taps:].all() and np.count_nonzero(touched) == changed.sum()
    changed[...] = 0.0
    np.moveaxis(changed, rule.out_axis(op), 0)[-1] = 1.0
    touched = rule.matrix(op, changed)
    assert touched[-1, :, -1].all() and np.count_nonzero(touched) == changed.sum()
