"""A folded batch norm computes the same as the layer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import paddle
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from paddle.nn import BatchNorm2D, Conv2D, Sequential

from slim_det.graph.folding import fold_batch_norm
from tests.compress.quantize.nets import make_net, picture
from tests.graph.nets import operators, program_of, run_one
from tests.support import assert_same_sums, fill_with


def test_nothing_to_fold(tmp_path: Path) -> None:
    program = program_of(Conv2D(2, 3, 1), (1, 2, 4, 4), tmp_path)
    before, values = operators(program), {n: program.value(n) for n in program.parameters}
    fold_batch_norm(program)
    assert operators(program) == before and set(program.parameters) == set(values)
    assert all(np.array_equal(program.value(n), value) for n, value in values.items())


def test_fold_by_hand(tmp_path: Path) -> None:
    """gamma 6, variance 4 - 1e-5, so a factor of 3; beta - mean * factor = 1 - 0.5 * 3 = -0.5."""
    net = Sequential(Conv2D(1, 1, 1, bias_attr=False), BatchNorm2D(1))
    values = {"weight": 6.0, "bias": 1.0, "_mean": 0.5, "_variance": 4.0 - 1e-5}
    fill_with(net, {"0.weight": 2.0, **{f"1.{name}": value for name, value in values.items()}})
    program = program_of(net, (1, 1, 1, 2), tmp_path)
    fold_batch_norm(program)
    weight = program.stored_weight(program.convolutions[0])
    assert program.value(weight).ravel() == pytest.approx([6.0])
    assert program.value(f"{weight}.folded_bias") == pytest.approx([-0.5])
    assert set(program.parameters) == {weight, f"{weight}.folded_bias"}
    x = np.array([[[[1.0, -2.0]]]], np.float32)
    assert_same_sums(run_one(program, x, tmp_path).ravel(), [5.5, -12.5])


@settings(
    max_examples=5,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(seed=st.integers(0, 2**31), groups=st.sampled_from([1, 2, 4]))
def test_fold_is_the_batch_norm(tmp_path: Path, seed: int, groups: int) -> None:
    """For any statistics, including negative and zero factors."""
    rng = np.random.default_rng(seed)
    net = Sequential(Conv2D(4, 4, 3, padding=1, groups=groups, bias_attr=False), BatchNorm2D(4))
    fill_with(
        net,
        {
            "0.weight": rng.normal(size=(4, 4 // groups, 3, 3)),
            "1.weight": rng.normal(size=4) * [1, 0, 1, 1],
            "1.bias": rng.normal(size=4),
            "1._mean": rng.normal(size=4),
            "1._variance": rng.uniform(0.1, 3.0, 4),
        },
    )
    program = program_of(net, (1, 4, 5, 5), tmp_path)
    fold_batch_norm(program)
    assert "batch_norm" not in operators(program)
    x = rng.normal(size=(1, 4, 5, 5)).astype("float32")
    expected = net(paddle.to_tensor(x)).numpy()
    assert_same_sums(run_one(program, x, tmp_path, onednn=False), expected)


class Shared(paddle.nn.Layer):
    """Must not be folded: the convolution or its weight has another reader, or it has a bias."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.conv = Conv2D(2, 2, 1, bias_attr=None if kind == "bias" else False)
        self.norm, self.other = BatchNorm2D(2), BatchNorm2D(2)
        values = {"weight": 2.0, "bias": 0.5, "_mean": 0.25, "_variance": 0.5}
        fill_with(self, {f"norm.{name}": value for name, value in values.items()})

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        y = self.conv(x)
        if self.kind == "output":
            return self.norm(y) + y
        if self.kind == "weight":
            return self.norm(y) + self.other(self.conv(x + 1.0))
        return self.norm(y)


@pytest.mark.parametrize("kind", ["output", "weight", "bias"])
def test_what_is_shared_is_left_alone(kind: str, tmp_path: Path) -> None:
    net = Shared(kind)
    program = program_of(net, (1, 2, 3, 3), tmp_path)
    before = operators(program)
    fold_batch_norm(program)
    assert operators(program) == before
    if kind == "weight":
        return  # Paddle Inference itself folds both norms into the one weight
    x = np.random.default_rng(0).normal(size=(1, 2, 3, 3)).astype("float32")
    assert_same_sums(run_one(program, x, tmp_path), net(paddle.to_tensor(x)).numpy())


def test_layers_that_follow_find_the_same_tensor(tmp_path: Path) -> None:
    program = program_of(make_net(), (1, 2, 5, 5), tmp_path)
    norm = next(op for op in program.block.ops if op.type == "batch_norm")
    output, readers = norm.output("Y")[0], [op.type for op in program.readers(norm.output("Y")[0])]
    fold_batch_norm(program)
    assert program.writer(output).type == "elementwise_add"
    assert [op.type for op in program.readers(output)] == readers
    expected = make_net()(picture()).numpy()
    assert_same_sums(run_one(program, picture().numpy(), tmp_path), expected)
