"""Groups behind operators of one-stage heads with group norm, and of two-stage detectors."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle.vision import ops

from slim_det.compress.prune.groups import ModelGroups, find_groups
from slim_det.compress.prune.plan import Plan, apply_plan
from slim_det.compress.prune.pruner import Pruner
from tests.compress.prune.test_groups import Net, axis_ids, conv, groups_of, members
from tests.support import trace_plain


def with_group_norm(channels: int, groups: int) -> Net:
    return Net(
        lambda n, x: F.relu(n.gn(n.a(x))),
        channels,
        a=conv(3, channels),
        gn=paddle.nn.GroupNorm(groups, channels),
    )


def test_channels_with_one_mean_go_together() -> None:
    groups = groups_of(with_group_norm(6, 3))
    group = groups.groups["a"]
    assert group.prunable
    first, second, third = group.units.tolist()
    expected = [first, first, second, second, third, third]
    for name in ("a.weight", "a.bias", "gn.weight", "gn.bias"):
        assert axis_ids(groups, name, 0) == expected
    assert axis_ids(groups, "head.weight", 1) == expected
    assert group.channels_kept(1) == 4


def test_a_mean_of_all_channels_cannot_lose_any() -> None:
    assert groups_of(with_group_norm(4, 1)).groups["a"].reason == "it has a single channel"


def test_group_norm_without_parameters_of_its_own() -> None:
    norm = paddle.nn.GroupNorm(2, 4, weight_attr=False, bias_attr=False)
    net = Net(lambda n, x: n.gn(n.a(x)), 4, a=conv(3, 4), gn=norm)
    assert len(groups_of(net).groups["a"].units) == 2


def test_group_norm_that_also_normalizes_the_image() -> None:
    def forward(n: Any, x: paddle.Tensor) -> Any:
        return n.gn(x) + n.gn(n.a(x))

    net = Net(forward, 4, a=conv(4, 4), gn=paddle.nn.GroupNorm(2, 4))
    assert "'gn.weight' also normalizes fixed values" in groups_of(net, 4).groups["a"].reason


def test_a_cut_leaves_whole_groups_of_the_norm() -> None:
    net = with_group_norm(12, 4)
    trace = trace_plain(net, 1, 3, 8, 8)
    groups = find_groups(net, trace)
    pruner = Pruner(pruned_ratios={"a": 0.5})
    plan: Plan = pruner.plan(net, trace, groups)
    apply_plan(net, plan)
    assert (net.gn._num_groups, net.gn._num_channels) == (2, 6)
    assert net.gn.weight.shape == [6]
    kept = plan.slices["a.weight"][0].reshape(2, 3)
    assert (kept // 3 == kept[:, :1] // 3).all()
    assert net(paddle.ones([1, 3, 8, 8])).shape == [1, 2, 8, 8]


BOXES = np.array([[0, 0, 4, 4], [1, 2, 6, 7], [0, 0, 7, 7]], np.float32)


def pooled(x: paddle.Tensor) -> paddle.Tensor:
    """Features of three boxes, [3, C, 2, 2]."""
    return ops.roi_align(x, paddle.to_tensor(BOXES), paddle.full([1], 3, "int32"), 2)


def test_features_of_boxes_keep_their_channels() -> None:
    def forward(n: Any, x: paddle.Tensor) -> Any:
        rows = paddle.gather(pooled(n.a(x)), paddle.to_tensor([2, 0, 1]))
        return n.fc(rows.flatten(1)).reshape([-1, 5, 1, 1])

    groups = groups_of(Net(forward, 5, a=conv(3, 3), fc=paddle.nn.Linear(12, 5)))
    assert groups.groups["a"].prunable
    ids = axis_ids(groups, "a.weight", 0)
    assert axis_ids(groups, "fc.weight", 0) == np.repeat(ids, 4).tolist()


@pytest.mark.parametrize("index", [[0, 2], [[0], [2]]])
def test_rows_may_be_gathered(index: Any) -> None:
    def forward(n: Any, x: paddle.Tensor) -> Any:
        return paddle.gather(n.a(x), paddle.to_tensor(index), axis=2)

    assert groups_of(Net(forward, 4, a=conv(3, 4))).groups["a"].prunable


def test_gathered_channels_cannot_go() -> None:
    def forward(n: Any, x: paddle.Tensor) -> Any:
        return paddle.gather(n.a(x), paddle.to_tensor([0, 2]), axis=1)

    group = groups_of(Net(forward, 2, a=conv(3, 4))).groups["a"]
    assert "operator 'gather', for which no channel rule is declared" in group.reason


class Branches(paddle.nn.Layer):
    """Two branches of a condition on the image, of which one may have no weights."""

    def __init__(self, both: bool) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 4), conv(3, 4), conv(4, 2)
        self.both = both

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        if x.mean() > 0.0:
            inside = self.a(x)
            y = F.relu(inside)
        else:
            y = self.b(x) if self.both else paddle.zeros([1, 4, 8, 8])
        return self.head(y)


def branches(both: bool) -> ModelGroups:
    net = Branches(both)
    return find_groups(net, trace_plain(net, 1, 3, 8, 8))


def test_two_branches_of_a_condition_share_channels() -> None:
    group = branches(both=True).groups["a"]
    assert members(group) == ["a.weight", "b.weight"]
    assert group.prunable


def test_a_branch_without_channels_freezes_the_other() -> None:
    group = branches(both=False).groups["a"]
    assert group.reason == "the other branch of a condition has values of fixed width"
