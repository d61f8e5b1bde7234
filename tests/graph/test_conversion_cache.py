"""Methods are rewritten once for all traces, and anew when their module has changed."""

from __future__ import annotations

from typing import Any

import paddle
import pytest
from paddle.jit.dy2static.program_translator import FunctionCache
from paddle.static import InputSpec

from slim_det.graph.trace import trace_layer

FACTOR = 2.0


class Scaled(paddle.nn.Layer):
    """One multiplication, by a number of this module."""

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """Multiply."""
        return x * FACTOR


class Twice(paddle.nn.Layer):
    """The same method of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = paddle.nn.LayerList([Scaled(), Scaled()])

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """Multiply twice."""
        return self.parts[1](self.parts[0](x))


@pytest.fixture
def rewritten(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the methods that Paddle rewrites."""
    names: list[str] = []
    original = FunctionCache._convert

    def counted(cache: FunctionCache, function: Any) -> Any:
        names.append(function.__qualname__)
        return original(cache, function)

    monkeypatch.setattr(FunctionCache, "_convert", counted)
    return names


def factors(layer: paddle.nn.Layer) -> list[float]:
    """The numbers that a layer multiplies by, in its program."""
    trace = trace_layer(layer, [InputSpec([1, 3], "float32", "x")])
    return [op.attrs["scale"] for op in trace.ops if op.type == "scale"]


def test_a_method_is_rewritten_once(rewritten: list[str]) -> None:
    assert factors(Twice()) == factors(Twice()) == [2.0, 2.0]
    assert rewritten.count("Scaled.forward") == 1


def test_a_change_of_its_module_is_seen(
    rewritten: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert factors(Scaled()) == [2.0]
    monkeypatch.setitem(globals(), "FACTOR", 3.0)
    assert factors(Scaled()) == [3.0]
    monkeypatch.undo()
    assert factors(Scaled()) == [2.0]


def test_paddle_is_restored() -> None:
    original = FunctionCache._convert
    factors(Twice())
    assert FunctionCache._convert is original
