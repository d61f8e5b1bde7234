"""The entries of real operators agree with what Paddle computes."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from slim_det.graph import channel_rules
from slim_det.graph.operators import OPERATORS

ELEMENTWISE = {
    kind
    for kind, operator in OPERATORS.items()
    if operator.channels in (channel_rules.same, channel_rules.gate)
}
UNSIGNED = {kind for kind, operator in OPERATORS.items() if operator.unsigned}


def run(kind: str, x: np.ndarray) -> np.ndarray:
    """One operator of Paddle with its default attributes on one tensor."""
    paddle.enable_static()
    try:
        with paddle.pir_utils.OldIrGuard():
            program = paddle.static.Program()
            with paddle.static.program_guard(program):
                given = paddle.static.data("x", x.shape, "float32")
                block = program.global_block()
                out = block.create_var(name="out", dtype="float32", shape=x.shape)
                outputs, attrs = {"Out": [out]}, {}
                if kind == "dropout":
                    mask = block.create_var(name="mask", dtype="uint8", shape=x.shape)
                    outputs, attrs = {**outputs, "Mask": [mask]}, {"is_test": True}
                if kind == "cast":
                    attrs = {"in_dtype": given.dtype, "out_dtype": given.dtype}
                block.append_op(type=kind, inputs={"X": [given]}, outputs=outputs, attrs=attrs)
            return paddle.static.Executor().run(program, {"x": x}, ["out"])[0]
    finally:
        paddle.disable_static()


@pytest.mark.parametrize("kind", sorted(ELEMENTWISE))
def test_zero_stays_zero_unless_it_is_a_gate(kind: str) -> None:
    zero = not run(kind, np.zeros((1, 2, 3, 3), np.float32)).any()
    assert zero == (OPERATORS[kind].channels is channel_rules.same)


@pytest.mark.parametrize("kind", sorted(UNSIGNED))
def test_unsigned_outputs_are_never_negative(kind: str) -> None:
    x = np.linspace(-9.0, 9.0, 18, dtype=np.float32).reshape(1, 2, 3, 3)
    assert run(kind, x).min() >= 0.0
