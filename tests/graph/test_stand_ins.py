"""Every function that has a stand-in, traced, saved and run, against the function itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle.static import InputSpec

from slim_det.graph.stand_ins import FUNCTIONS
from slim_det.graph.tracing import deployment_program
from tests.graph.nets import run_saved
from tests.support import assert_same_sums, trace_plain

Call = Callable[[paddle.Tensor], paddle.Tensor]


class Apply(paddle.nn.Layer):
    """A function, behind a layer: a program without parameters cannot be loaded."""

    def __init__(self, function: Callable[[paddle.Tensor], Any]) -> None:
        super().__init__()
        self.linear = paddle.nn.Linear(4, 4)
        self.linear.weight.set_value(np.eye(4, dtype="float32"))
        self.function = function

    def forward(self, x: paddle.Tensor) -> Any:
        return self.function(self.linear(x))


def number(flags: paddle.Tensor) -> paddle.Tensor:
    return flags.astype("float32")


def in_unit(x: paddle.Tensor) -> paddle.Tensor:
    """Numbers between -0.9 and 0.9."""
    return F.tanh(x) * 0.9


def as_map(x: paddle.Tensor) -> paddle.Tensor:
    return x.reshape([1, 3, 2, 2])


def grid(x: paddle.Tensor) -> paddle.Tensor:
    """Places of three rows of two pixels, some of them outside the map."""
    return (x * 0.5).reshape([1, 3, 2, 2])


CALLS: dict[str, list[Call]] = {
    "__pow__": [lambda x: (x * x + 0.5) ** 0.6, lambda x: x**2, lambda x: (x * x + 0.5) ** x],
    "abs": [lambda x: paddle.abs(x), lambda x: x.abs()],
    "acos": [lambda x: paddle.acos(in_unit(x))],
    "acosh": [lambda x: paddle.acosh(x * x + 1.5)],
    "asin": [lambda x: paddle.asin(in_unit(x))],
    "atanh": [lambda x: paddle.atanh(in_unit(x))],
    "ceil": [lambda x: paddle.ceil(x)],
    "cos": [lambda x: paddle.cos(x)],
    "cosh": [lambda x: paddle.cosh(x)],
    "exp": [lambda x: paddle.exp(x)],
    "expm1": [lambda x: paddle.expm1(x)],
    "floor": [lambda x: paddle.floor(x)],
    "log": [lambda x: paddle.log(x * x + 1.0), lambda x: x.sigmoid().log()],
    "log10": [lambda x: paddle.log10(x * x + 1.0)],
    "log1p": [lambda x: paddle.log1p(x * x)],
    "log2": [lambda x: paddle.log2(x * x + 1.0)],
    "logical_not": [lambda x: number(paddle.logical_not(x > 0.5))],
    "round": [lambda x: paddle.round(x)],
    "rsqrt": [lambda x: paddle.rsqrt(x * x + 1.0)],
    "sigmoid": [lambda x: F.sigmoid(x), lambda x: x * F.sigmoid(x) - x / 2.0],
    "sign": [lambda x: paddle.sign(x)],
    "sin": [lambda x: paddle.sin(x)],
    "sinh": [lambda x: paddle.sinh(x)],
    "sqrt": [lambda x: paddle.sqrt(paddle.abs(x)), lambda x: (x * x).sqrt()],
    "tanh": [lambda x: paddle.tanh(x), lambda x: F.tanh(x)],
    "isfinite": [lambda x: number(paddle.isfinite(x / F.relu(x)))],
    "isinf": [lambda x: number(paddle.isinf(x / F.relu(x)))],
    "isnan": [lambda x: number(paddle.isnan(x / F.relu(x) * 0.0))],
    "multiply": [lambda x: paddle.multiply(x, y=x), lambda x: paddle.multiply(x, x.mean([0]))],
    "maximum": [lambda x: paddle.maximum(x, -x)],
    "minimum": [lambda x: paddle.minimum(x=x, y=-x)],
    "bmm": [lambda x: paddle.bmm(x.unsqueeze(0), x.unsqueeze(0).transpose([0, 2, 1]))],
    "dot": [lambda x: paddle.dot(x, x + 1.0)],
    "greater_than": [lambda x: number(paddle.greater_than(x, -x))],
    "logical_and": [lambda x: number(paddle.logical_and(x > 0.5, x < 2.0))],
    "logical_or": [lambda x: number(paddle.logical_or(x > 0.5, x < -0.5))],
    "logical_xor": [lambda x: number(paddle.logical_xor(x > 0.5, x < 2.0))],
    "softplus": [
        lambda x: F.softplus(x),
        lambda x: F.softplus(x, 2.0),
        lambda x: F.softplus(x, beta=2.0, threshold=1.0),
    ],
    "gelu": [lambda x: F.gelu(x), lambda x: F.gelu(x, True)],
    "matmul": [
        lambda x: paddle.matmul(x, x, transpose_y=True),
        lambda x: paddle.matmul(x, y=x, transpose_x=True),
        lambda x: paddle.matmul(x, x, False, True),
    ],
    "sum": [
        lambda x: paddle.sum(x),
        lambda x: x.sum(1),
        lambda x: x.sum(axis=[0, 1], keepdim=True),
        lambda x: number(paddle.sum(x > 0.5, axis=-1)),
        lambda x: number(paddle.sum(x.astype("int32"), axis=0)),
        lambda x: number(paddle.sum(x, axis=0, dtype="float64")),
    ],
    "amax": [lambda x: paddle.amax(x), lambda x: paddle.amax(x, axis=1, keepdim=True)],
    "amin": [lambda x: paddle.amin(x), lambda x: paddle.amin(x, axis=[0, 1])],
    "all": [lambda x: number((x > 0.0).all()), lambda x: number((x > -9.0).all(axis=1))],
    "any": [lambda x: number((x > 99.0).any()), lambda x: number((x > 1.0).any(0, True))],
    "argmax": [
        lambda x: number(paddle.argmax(x)),
        lambda x: number(x.argmax(axis=1)),
        lambda x: number(x.argmax(-1, True, "int32")),
    ],
    "argmin": [lambda x: number(paddle.argmin(x, axis=1))],
    "logsumexp": [lambda x: paddle.logsumexp(x), lambda x: paddle.logsumexp(x, 1, True)],
    "roll": [
        lambda x: paddle.roll(x, 1),
        lambda x: paddle.roll(x, shifts=[1, -1], axis=[0, 1]),
    ],
    "tril": [lambda x: paddle.tril(x), lambda x: paddle.tril(x, -1)],
    "triu": [lambda x: paddle.triu(x), lambda x: paddle.triu(x, diagonal=1)],
    "grid_sample": [
        lambda x: F.grid_sample(as_map(x), grid(x)),
        lambda x: F.grid_sample(as_map(x), grid(x), "nearest", "border", align_corners=False),
    ],
}  # fmt: skip


def test_every_function_is_called() -> None:
    assert CALLS.keys() == FUNCTIONS.keys()


def test_a_saved_program_gives_what_the_functions_give(tmp_path: Path) -> None:
    calls = [(name, call) for name, several in CALLS.items() for call in several]
    net = Apply(lambda y: [call(y) for _, call in calls])
    path = str(tmp_path / "model")
    with deployment_program():
        paddle.jit.save(net, path, input_spec=[InputSpec([3, 4], "float32", "x")])
    assert Path(f"{path}.pdmodel").exists()
    x = np.random.default_rng(0).normal(size=(3, 4)).astype("float32") * 3
    expected = [value.numpy() for value in net(paddle.to_tensor(x))]
    reached = run_saved(path, x)
    assert len(reached) == len(expected) == len(calls)
    for (name, _), left, right in zip(calls, reached, expected):
        assert left.shape == right.shape, name
        assert np.ptp(right) > 0 or right.size == 1 or name in ("all", "any"), name
        assert_same_sums(left, right, what=name)


@pytest.mark.parametrize(
    "call",
    [
        lambda x: F.softplus(x, alpha=2.0),
        lambda x: paddle.abs(x, 1, 2),
        lambda x: paddle.sum(x, dim=1),
    ],
)
def test_arguments_that_cannot_be_traced_are_refused(call: Call) -> None:
    with pytest.raises(TypeError, match="these arguments cannot be traced for deployment"):
        trace_plain(Apply(call), 3, 4)


def test_powers_of_numbers_have_no_constants() -> None:
    """Paddle-Lite does not read the constants without axes that Paddle would make."""
    types = [op.type for op in trace_plain(Apply(lambda x: x.sigmoid() ** 0.4), 3, 4).ops]
    assert types[-2:] == ["sigmoid", "pow"] and "fill_constant" not in types
