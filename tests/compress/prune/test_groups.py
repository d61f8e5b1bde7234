"""Groups of hand-made networks, where the answer can be read off the code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest

from slim_det.compress.prune.groups import Group, ModelGroups, find_groups
from tests.compress.prune.small_net import SmallNet, traced
from tests.support import trace_plain

Forward = Callable[[Any, paddle.Tensor], Any]


class Net(paddle.nn.Layer):
    """Named layers and a function that uses them; `head` turns `head_inside` channels into 2."""

    def __init__(self, forward: Forward, head_inside: int, **layers: paddle.nn.Layer) -> None:
        super().__init__()
        self.function = forward
        for name, layer in layers.items():
            self.add_sublayer(name, layer)
        self.head = conv(head_inside, 2)

    def forward(self, x: paddle.Tensor) -> Any:
        return self.head(self.function(self, x))


def conv(inside: int, out: int, **settings: Any) -> paddle.nn.Conv2D:
    return paddle.nn.Conv2D(inside, out, 3, padding=1, **settings)


def groups_of(net: Net, channels: int = 3) -> ModelGroups:
    return find_groups(net, trace_plain(net, 1, channels, 8, 8))


def members(group: Group) -> list[str]:
    return [member.parameter for member in group.members]


def axis_ids(groups: ModelGroups, parameter: str, axis: int) -> list[int]:
    (found,) = (a.ids for a in groups.axes if (a.parameter, a.axis) == (parameter, axis))
    return found.tolist()


def test_a_chain_has_one_group_a_convolution() -> None:
    net = Net(lambda n, x: n.b(F.relu(n.a(x))), 5, a=conv(3, 4), b=conv(4, 5))
    groups = groups_of(net)
    assert list(groups.groups) == ["a", "b", "head"]
    assert [g.prunable for g in groups.groups.values()] == [True, True, False]
    assert groups.groups["head"].reason == "it is an output of the model"
    assert groups.groups["a"].channels == len(groups.groups["a"].units) == 4
    assert axis_ids(groups, "a.weight", 0) == axis_ids(groups, "b.weight", 1)
    assert axis_ids(groups, "a.weight", 0) == axis_ids(groups, "a.bias", 0)


def test_the_image_belongs_to_no_group() -> None:
    groups = groups_of(Net(lambda n, x: n.a(x), 4, a=conv(3, 4)))
    units = {u for group in groups.groups.values() for u in group.units.tolist()}
    assert units.isdisjoint(axis_ids(groups, "a.weight", 1))


def test_a_residual_couples_its_layers_in_execution_order() -> None:
    def forward(n: Any, x: paddle.Tensor) -> Any:
        x = n.stem(x)
        x = F.relu(x + n.b(n.a(x)))
        return F.relu(x + n.d(n.c(x)))

    net = Net(forward, 4, stem=conv(3, 4), a=conv(4, 6), b=conv(6, 4), c=conv(4, 7), d=conv(7, 4))
    groups = groups_of(net).groups
    assert list(groups) == ["stem", "a", "c", "head"]
    assert members(groups["stem"]) == ["stem.weight", "b.weight", "d.weight"]
    assert members(groups["a"]) == ["a.weight"]
    assert len(groups["stem"].units) == 4


def test_concat_keeps_both_groups_apart_and_in_place() -> None:
    def forward(n: Any, x: paddle.Tensor) -> Any:
        return paddle.concat([n.a(x), x, n.b(x)], axis=1)

    groups = groups_of(Net(forward, 12, a=conv(3, 4), b=conv(3, 5)))
    read = axis_ids(groups, "head.weight", 1)
    assert read[:4] == axis_ids(groups, "a.weight", 0)
    assert read[7:] == axis_ids(groups, "b.weight", 0)
    assert groups.groups["a"].prunable and groups.groups["b"].prunable
    assert set(read[4:7]).isdisjoint(groups.groups["a"].units.tolist())


def test_concat_of_the_same_tensor_repeats_its_channels() -> None:
    def forward(n: Any, x: paddle.Tensor) -> Any:
        y = n.a(x)
        return n.b(paddle.concat([y, n.c(x), y], axis=1))

    groups = groups_of(Net(forward, 5, a=conv(3, 2), b=conv(7, 5), c=conv(3, 3)))
    a, c = axis_ids(groups, "a.weight", 0), axis_ids(groups, "c.weight", 0)
    assert axis_ids(groups, "b.weight", 1) == a + c + a


def test_a_sum_beside_a_concat_holds_both() -> None:
    def forward(n: Any, x: paddle.Tensor) -> Any:
        return paddle.concat([n.a(x), n.b(x)], axis=1) + n.c(x)

    groups = groups_of(Net(forward, 6, a=conv(3, 2), b=conv(3, 4), c=conv(3, 6)))
    group = groups.groups["a"]
    assert members(group) == ["a.weight", "b.weight", "c.weight"]
    assert (len(group.units), group.channels) == (6, 6)
    together = axis_ids(groups, "a.weight", 0) + axis_ids(groups, "b.weight", 0)
    assert axis_ids(groups, "c.weight", 0) == together


def test_grouped_convolution_ties_the_same_place_of_every_group() -> None:
    net = Net(lambda n, x: n.b(n.a(x)), 9, a=conv(3, 6), b=conv(6, 9, groups=3))
    groups = groups_of(net)
    first, second = axis_ids(groups, "a.weight", 0)[:2]
    assert axis_ids(groups, "a.weight", 0) == [first, second] * 3
    assert axis_ids(groups, "b.weight", 1) == [first, second]
    assert len(groups.groups["a"].units) == 2
    assert len(groups.groups["b"].units) == 3
    assert groups.groups["b"].channels == 9
    assert groups.groups["b"].channels_kept(1) == 6


def test_depthwise_follows_what_it_reads() -> None:
    net = Net(
        lambda n, x: n.bn(n.d(n.a(x))),
        8,
        a=conv(3, 4),
        d=conv(4, 8, groups=4),
        bn=paddle.nn.BatchNorm2D(8),
    )
    groups = groups_of(net)
    assert list(groups.groups) == ["a", "head"]
    assert groups.depthwise == {"d.weight": 2}
    ids = axis_ids(groups, "a.weight", 0)
    assert axis_ids(groups, "d.weight", 0) == np.repeat(ids, 2).tolist()
    assert axis_ids(groups, "bn._mean", 0) == np.repeat(ids, 2).tolist()
    assert groups.followers["d.weight"] == groups.followers["bn.weight"] == ["a"]


def test_a_linear_layer_behind_flatten_reads_every_pixel() -> None:
    def forward(n: Any, x: paddle.Tensor) -> Any:
        return n.fc(F.adaptive_avg_pool2d(n.a(x), 2).flatten(1)).reshape([-1, 5, 1, 1])

    groups = groups_of(Net(forward, 5, a=conv(3, 3), fc=paddle.nn.Linear(12, 5)))
    ids = axis_ids(groups, "a.weight", 0)
    assert axis_ids(groups, "fc.weight", 0) == np.repeat(ids, 4).tolist()
    assert groups.groups["a"].prunable
    assert "channel numbers that are written in the model" in groups.groups["fc"].reason


def test_weights_used_twice_read_and_make_the_same_channels() -> None:
    net = Net(lambda n, x: n.s(n.s(n.a(x))), 4, a=conv(3, 4), s=conv(4, 4))
    groups = groups_of(net)
    assert members(groups.groups["a"]) == ["a.weight", "s.weight"]
    assert axis_ids(groups, "s.weight", 0) == axis_ids(groups, "s.weight", 1)


def test_weights_that_also_read_the_image_are_tied_to_it() -> None:
    net = Net(lambda n, x: n.s(x) + n.s(n.a(x)), 4, a=conv(3, 3), s=conv(3, 4))
    groups = groups_of(net).groups
    assert not groups["a"].prunable
    assert "'s.weight' also reads fixed values" in groups["a"].reason
    assert groups["s"].prunable


def test_a_sum_with_the_image_inside_a_concat_is_tied_to_it() -> None:
    def forward(n: Any, x: paddle.Tensor) -> Any:
        return paddle.concat([x, n.a(x)], axis=1) + n.b(x)

    groups = groups_of(Net(forward, 7, a=conv(3, 4), b=conv(3, 7))).groups
    assert members(groups["a"]) == ["a.weight", "b.weight"]
    assert groups["a"].reason == "it is tied to values of fixed width"


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x: F.softmax(x, axis=1), "operator 'softmax', for which no channel rule"),
        (lambda x: paddle.cumsum(x, axis=1), "operator 'cumsum', for which no channel rule"),
        (lambda x: x[:, :3], "sliced at channel numbers that are written in the model"),
        (lambda x: paddle.split(x, [1, 3], axis=1)[1], "split at channel numbers"),
        (lambda x: x.reshape([-1, 2, 2, 8, 8]).flatten(1, 2), "reshaped to channel numbers"),
        (lambda x: F.sigmoid(x), "'head.weight' reads it where a zeroed channel is not zero"),
        (lambda x: x + 1.0, "reads it where a zeroed channel is not zero"),
        (lambda x: F.pad(x, [1, 1, 1, 1], value=2.0), "a zeroed channel is not zero"),
        (lambda x: paddle.clip(x, 0.5, 1.0), "a zeroed channel is not zero"),
        (lambda x: x.mean(axis=1, keepdim=True) * x, "operator 'reduce_mean' mixes"),
        (lambda x: x.transpose([0, 2, 1, 3]), "'head.weight' reads its channels along another"),
        (lambda x: x + paddle.ones([1, 4, 1, 1]), "joins it with values of fixed width"),
    ],
)
def test_what_cannot_be_cut_says_why(function: Callable[..., Any], words: str) -> None:
    inside = 8 if "another" in words else 3 if " at channel" in words else 4
    net = Net(lambda n, x: function(n.a(x)), inside, a=conv(3, 4))
    group = groups_of(net).groups["a"]
    assert words in group.reason
    assert not group.prunable


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * F.sigmoid(x),
        lambda x: x * 2.0,
        lambda x: paddle.clip(x, -1.0, 1.0),
        lambda x: x[:, :, 1:],
        lambda x: x / 3.0,
        lambda x: F.pad(x, [1, 1, 1, 1]),
        lambda x: paddle.split(x, 2, axis=2)[0],
        lambda x: F.interpolate(x, scale_factor=2),
        lambda x: x.flatten(2).reshape([0, 0, 4, 16]),
        lambda x: x.unsqueeze(2).squeeze(2),
        lambda x: x.transpose([0, 2, 3, 1]).transpose([0, 3, 1, 2]),
        lambda x: x * x.mean([2, 3], keepdim=True),
    ],
)
def test_what_leaves_zero_in_its_place_can_be_cut(function: Callable[..., Any]) -> None:
    net = Net(lambda n, x: function(n.a(x)), 4, a=conv(3, 4))
    assert groups_of(net).groups["a"].prunable


class WithParameter(paddle.nn.Layer):
    """Adds a parameter of its own, of any shape that broadcasts, behind a convolution."""

    def __init__(self, shape: list[int], kind: str) -> None:
        super().__init__()
        self.a, self.head = conv(3, 4), conv(4, 2)
        self.kind = kind
        self.extra = self.create_parameter(shape)

    def forward(self, x: paddle.Tensor) -> Any:
        y = self.a(x)
        return self.head(y + self.extra if self.kind == "add" else y * self.extra)


@pytest.mark.parametrize(
    ("shape", "kind", "prunable"),
    [
        ([1, 4, 1, 1], "add", True),  # one number a channel: cut with it
        ([4, 1, 1], "add", True),
        ([4, 8, 8], "add", True),
        ([1, 1, 8, 8], "add", False),  # the same for all channels: a zero does not survive
        ([1], "add", False),
        ([1, 4, 1, 1], "mul", True),
        ([1, 1, 8, 8], "mul", True),
        ([1], "mul", True),
    ],
)
def test_a_parameter_of_its_own(shape: list[int], kind: str, prunable: bool) -> None:
    net = WithParameter(shape, kind)
    groups = find_groups(net, trace_plain(net, 1, 3, 8, 8))
    assert groups.groups["a"].prunable == prunable
    follows = any(axis.parameter == "extra" for axis in groups.axes)
    assert follows == (4 in shape)


def test_a_single_channel_cannot_go() -> None:
    groups = groups_of(Net(lambda n, x: n.a(x), 1, a=conv(3, 1))).groups
    assert not groups["a"].prunable
    assert groups["a"].reason == "it has a single channel"


def test_one_channel_with_bias_beside_others_freezes_nothing() -> None:
    def forward(n: Any, x: paddle.Tensor) -> Any:
        return paddle.concat([n.a(x), n.b(x)], axis=1)

    groups = groups_of(Net(forward, 5, a=conv(3, 4), b=conv(3, 1))).groups
    assert groups["a"].prunable


def test_only_what_passed_the_gate_is_frozen_behind_a_concat() -> None:
    def forward(n: Any, x: paddle.Tensor) -> Any:
        return paddle.concat([F.sigmoid(n.a(x)), n.b(x)], axis=1)

    groups = groups_of(Net(forward, 8, a=conv(3, 4), b=conv(3, 4))).groups
    assert (groups["a"].prunable, groups["b"].prunable) == (False, True)


@pytest.mark.parametrize("bias", [None, False])
def test_batch_norm_directly_behind_is_known(bias: bool | None) -> None:
    net = Net(
        lambda n, x: n.late(F.relu(n.bn(n.a(x)))),
        4,
        a=conv(3, 4, bias_attr=bias),
        bn=paddle.nn.BatchNorm2D(4),
        late=paddle.nn.BatchNorm2D(4),
    )
    groups = groups_of(net).groups
    (a,), (head,) = groups["a"].members, groups["head"].members
    assert (a.batch_norm, a.shift) == ("bn.weight", "bn.bias")
    assert a.bias == ("a.bias" if bias is None else "")
    assert (head.batch_norm, head.shift, head.bias) == ("", "", "head.bias")


def test_batch_norm_behind_a_linear_layer_is_known() -> None:
    class Plain(paddle.nn.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.bn = paddle.nn.Linear(6, 4), paddle.nn.BatchNorm1D(4)
            self.b = paddle.nn.Linear(4, 2)

        def forward(self, x: paddle.Tensor) -> paddle.Tensor:
            return self.b(self.bn(self.a(x)))

    net = Plain()
    groups = find_groups(net, trace_plain(net, 2, 6)).groups
    (a,) = groups["a"].members
    assert (a.batch_norm, a.shift, a.bias) == ("bn.weight", "bn.bias", "a.bias")
    assert groups["a"].prunable


def test_deformable_convolution_keeps_its_offsets() -> None:
    def forward(n: Any, x: paddle.Tensor) -> Any:
        y = n.a(x)
        return n.d(y, n.offsets(y))

    net = Net(
        forward,
        5,
        a=conv(3, 4),
        offsets=conv(4, 18),
        d=paddle.vision.ops.DeformConv2D(4, 5, 3, padding=1),
    )
    groups = groups_of(net).groups
    assert groups["a"].prunable and groups["d"].prunable
    assert "it holds the sampling offsets of 'd.weight'" in groups["offsets"].reason


def test_deformable_groups_share_their_places() -> None:
    def forward(n: Any, x: paddle.Tensor) -> Any:
        return n.d(n.a(x), n.offsets(x))

    net = Net(
        forward,
        6,
        a=conv(3, 4),
        offsets=conv(3, 36),
        d=paddle.vision.ops.DeformConv2D(4, 6, 3, padding=1, deformable_groups=2),
    )
    groups = groups_of(net)
    assert len(groups.groups["a"].units) == 2
    assert len(groups.groups["d"].units) == 3
    for name in ("a.weight", "d.weight"):
        ids = axis_ids(groups, name, 0)
        assert ids[: len(ids) // 2] == ids[len(ids) // 2 :]


def test_batch_norm_along_another_axis_freezes_what_it_reads() -> None:
    def forward(n: Any, x: paddle.Tensor) -> Any:
        rows = n.bn(n.a(x).flatten(2).transpose([0, 2, 1]))
        return rows.transpose([0, 2, 1]).reshape([0, 0, 8, 8])

    groups = groups_of(Net(forward, 4, a=conv(3, 4), bn=paddle.nn.BatchNorm1D(64))).groups
    assert "'bn.weight' normalizes along another axis" in groups["a"].reason


def test_batch_norm_that_also_normalizes_the_image() -> None:
    net = Net(lambda n, x: n.bn(x) + n.bn(n.a(x)), 3, a=conv(3, 3), bn=paddle.nn.BatchNorm2D(3))
    assert "'bn.weight' also normalizes fixed values" in groups_of(net).groups["a"].reason


def test_a_split_whose_axis_is_computed_freezes_what_it_reads() -> None:
    def forward(n: Any, x: paddle.Tensor) -> Any:
        return paddle.split(n.a(x), 2, axis=paddle.full([1], 1, "int32"))[0]

    groups = groups_of(Net(forward, 2, a=conv(3, 4))).groups
    assert "operator 'split', for which no channel rule" in groups["a"].reason


def test_what_is_left_keeps_its_identity() -> None:
    """Units, members, axes and channels without those that are removed; nothing else changes."""
    _, groups = traced(SmallNet())
    stem = groups.groups["stem"].units
    left = groups.without(stem[[0, 3]])
    assert left.groups["stem"].units.tolist() == stem[[1, 2]].tolist()
    assert left.groups["stem"].channels == 2 and left.groups["stem"].prunable
    assert {len(member.ids) for member in left.groups["stem"].members} == {2}
    widths = {(a.parameter, a.axis): len(a.ids) for a in left.axes}
    assert widths["outer.weight", 0] == widths["head.weight", 1] == 2
    assert widths["outer.weight", 1] == widths["inner.weight", 0] == 6
    inner = groups.groups["inner"], left.groups["inner"]
    np.testing.assert_array_equal(inner[0].units, inner[1].units)
    assert left.groups["head"].reasons == groups.groups["head"].reasons
    assert len(groups.groups["stem"].units) == 4, "the groups themselves stay"
    single = left.without(stem[[1]]).groups["stem"]
    assert single.reason == "it has a single channel"
