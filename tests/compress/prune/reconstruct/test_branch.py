"""What lies behind a layer, and which of its outputs count alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle.nn import BatchNorm1D, BatchNorm2D, Conv2D, Linear

from slim_det.compress.prune.reconstruct.branch import Branch, Limits, branch_of
from slim_det.graph.op import Op
from slim_det.graph.operators import weight_of
from slim_det.graph.program import DeployProgram
from tests.compress.prune.reconstruct.nets import Prepared

INF = np.inf


class Net(paddle.nn.Layer):
    """`conv` with what comes after it."""

    def __init__(self, after: Callable[..., Any], **parts: paddle.nn.Layer) -> None:
        super().__init__()
        self.after = after
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: paddle.Tensor) -> Any:
        return self.after(self, x)


def conv(**settings: Any) -> Conv2D:
    return Conv2D(3, 4, 1, **settings)


def branch(net: Net) -> tuple[Branch | None, DeployProgram]:
    program = Prepared(net).program()
    (use,) = (i for i, op in enumerate(program.ops) if _first(program, op))
    return branch_of(program, use), program


def _first(program: DeployProgram, op: Op) -> bool:
    return bool(weight_of(op)) and weight_of(op) in program.parameters


def limits(net: Net, other: Any = 0.0) -> Limits:
    found, program = branch(net)
    assert found is not None
    return found.limits(program, 4, other)


@pytest.mark.parametrize(
    ("after", "clip"),
    [
        (lambda s, x: F.relu(s.conv(x)), (0.0, INF)),
        (lambda s, x: F.relu6(s.conv(x)), (0.0, 6.0)),
        (lambda s, x: F.relu(s.bn(s.conv(x))), (0.0, INF)),
        (lambda s, x: F.leaky_relu(s.conv(x), 0.1), (-INF, INF)),
        (lambda s, x: s.bn(s.conv(x)), (-INF, INF)),
    ],
    ids=["relu", "relu6", "batch norm", "leaky", "nothing"],
)
def test_what_clips(after: Callable[..., Any], clip: tuple[float, float]) -> None:
    found, _ = branch(Net(after, conv=conv(bias_attr=False), bn=BatchNorm2D(4)))
    assert found is not None
    assert found.clip == clip and found.clips == (clip[0] == 0.0)


def test_an_output_that_is_read_in_front_of_the_activation() -> None:
    """Its former value is needed there, also where the activation clips it."""

    def after(s: Net, x: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
        x = s.conv(x)
        return F.relu(x), x

    for bias in (None, False):
        found, _ = branch(Net(after, conv=conv(bias_attr=bias)))
        assert found is not None and not found.clips


def test_a_bias_that_is_not_one_for_each_channel() -> None:
    net = Net(lambda s, x: F.relu(s.conv(x) + s.free), conv=conv(bias_attr=False))
    net.free = net.create_parameter([4, 8, 8])
    assert branch(net)[0] is None


def test_a_batch_norm_over_other_numbers_than_channels() -> None:
    """Behind a product, [1, 8, 4], it takes the rows for channels."""

    class Rows(Net):
        def forward(self, x: paddle.Tensor) -> paddle.Tensor:
            return F.relu(self.bn(self.conv(x[:, 0, :, :3])))

    found, _ = branch(Rows(lambda *_: None, conv=Linear(3, 4, bias_attr=False), bn=BatchNorm1D(8)))
    assert found is not None and found.norm is None and not found.clips


def test_limits_behind_bias_and_batch_norm() -> None:
    """``2 (y + bias) - 6`` is at most 0 where y is at most ``3 - bias``; a factor of -1 turns it.

    The last channel hardly passes: its outputs keep their former values. 1e-4 for epsilon.
    """
    net = Net(lambda s, x: F.relu6(s.bn(s.conv(x))), conv=conv(), bn=BatchNorm2D(4))
    net.conv.bias.set_value(np.array([0, 1, 0, 0], np.float32))
    for name, value in (
        ("weight", [2, 2, -1, 1e-6]), ("bias", [-6, -6, 2, 1]),
        ("_mean", [0] * 4), ("_variance", [1] * 4),
    ):  # fmt: skip
        getattr(net.bn, name).set_value(np.array(value, np.float32))
    found = limits(net)
    np.testing.assert_allclose(found.low, [[3, 2, -4, -INF]], rtol=1e-4)
    np.testing.assert_allclose(found.high, [[6, 5, 2, INF]], rtol=1e-4)


def test_limits_of_a_sum() -> None:
    """What the other side gives is no longer needed."""
    net = Net(lambda s, x: F.relu(s.conv(x)), conv=conv(bias_attr=False))
    other = np.array([[1, 2, 3, 4], [-1, 0, 0, 0]], np.float32)
    found = limits(net, other)
    np.testing.assert_array_equal(found.low, -other)
    assert (found.high == INF).all() and found.high.shape == (2, 4)


def test_the_nearest_output_that_counts_alike() -> None:
    found = Limits(np.array([[0.0]]), np.array([[6.0]]))
    wanted = np.array([[3.0], [-1.0], [-1.0], [-1.0], [8.0], [8.0], [0.0], [6.0]])
    given = np.array([[5.0], [-4.0], [2.0], [0.0], [9.0], [1.0], [-3.0], [7.0]])
    expected = [3.0, -4.0, 0.0, 0.0, 9.0, 6.0, -3.0, 7.0]
    assert found.nearest(wanted, given).ravel().tolist() == expected


def test_limits_of_groups() -> None:
    """Outputs [G, P, C / G]: those of a group are neighbours."""
    low = np.arange(12.0).reshape(2, 6)
    found = Limits(low, low[:1] + 20).grouped(3)
    assert found.low.tolist() == [[[0, 1], [6, 7]], [[2, 3], [8, 9]], [[4, 5], [10, 11]]]
    assert found.high.shape == (3, 1, 2) and found.high[2].tolist() == [[24, 25]]
