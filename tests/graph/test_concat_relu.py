"""A ReLU moves before a concatenation if the engine would apply it to other readers too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle.nn import Conv2D

from slim_det.graph.concat_relu import move_relu_before_concat
from slim_det.graph.program import DeployProgram
from tests.graph.nets import operators, program_of, run_one
from tests.support import assert_same_sums

SHAPE = (1, 2, 5, 5)


class Joined(paddle.nn.Layer):
    """Two convolutions, the second of the first or of the image, joined before an activation."""

    def __init__(self, is_shared: bool = True, act: Any = F.relu, is_read_twice: bool = False):
        super().__init__()
        self.is_shared, self.act, self.is_read_twice = is_shared, act, is_read_twice
        self.first, self.second = Conv2D(2, 2, 3, padding=1), Conv2D(2, 3, 3, padding=1)
        self.last = Conv2D(5, 2, 1)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        first = self.first(x)
        joined = paddle.concat([first, self.second(first if self.is_shared else x)], axis=1)
        last = self.last(self.act(joined))
        return last + joined[:, :2] if self.is_read_twice else last


def moved(net: paddle.nn.Layer, folder: Path) -> DeployProgram:
    program = program_of(net, SHAPE, folder)
    move_relu_before_concat(program)
    return program


def test_no_concatenation(tmp_path: Path) -> None:
    net = paddle.nn.Sequential(Conv2D(2, 2, 1), paddle.nn.ReLU())
    assert operators(moved(net, tmp_path)) == operators(program_of(net, SHAPE, tmp_path))


def test_relu_of_each_part(tmp_path: Path) -> None:
    """The sums are the engine's own, the fusion of oneDNN included."""
    paddle.seed(0)
    net = Joined()
    program = moved(net, tmp_path)
    order = [kind for kind in operators(program) if kind in ("conv2d", "relu", "concat")]
    assert order == ["conv2d", "conv2d", "relu", "relu", "concat", "conv2d"]
    x = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    expected = net(paddle.to_tensor(x)).numpy()
    assert_same_sums(run_one(program, x, tmp_path), expected)
    assert_same_sums(run_one(program, x, tmp_path, onednn=False), expected)


@pytest.mark.parametrize(
    "settings",
    [{"is_shared": False}, {"act": F.relu6}, {"act": lambda x: x}, {"is_read_twice": True}],
    ids=["nobody else reads", "another activation", "no activation", "concatenation read twice"],
)
def test_left_alone(settings: dict[str, Any], tmp_path: Path) -> None:
    net = Joined(**settings)
    assert operators(moved(net, tmp_path)) == operators(program_of(net, SHAPE, tmp_path))
