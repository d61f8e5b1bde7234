"""Cuts are those of the pruner, written as masks."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest

from slim_det.compress.prune.groups import ModelGroups, find_groups
from slim_det.compress.prune.pruner import Pruner
from slim_det.core.errors import LayerError
from slim_det.detectors.yolov3_head import YOLO_HEAD_LAYERS
from slim_det.graph.trace import Trace
from slim_det.planning.sensitivity.candidates import choose_groups, make_targets
from slim_det.planning.sensitivity.cuts import Cut, Target
from tests.compress.prune.small_net import SmallNet, traced
from tests.support import fill_with, trace_plain

NORMS = {"stem": [4, 1, 3, 2], "inner": [6, 5, 4, 3, 2, 1]}
"""L1 norm of each output channel, up to a factor: the smallest goes first."""


@pytest.fixture(scope="module")
def small() -> tuple[SmallNet, Trace, ModelGroups]:
    """Two groups: `stem` (with `outer`, after batch norm and depthwise) and `inner`."""
    net = SmallNet()
    fill_with(net, {f"{name}.weight": _columns(norms) for name, norms in NORMS.items()})
    return (net, *traced(net))


def _columns(norms: list[int]) -> np.ndarray:
    return np.array(norms, "float32").reshape(-1, 1, 1, 1)


def targets_of(small: Any, ratios: list[float], **options: Any) -> list[Target]:
    net, trace, groups = small
    pruner = Pruner(pruned_ratios=0.5, **options)
    return make_targets(net, trace, groups, ["stem", "inner"], ratios, pruner)


def mask_of(small: Any, cut: Cut, layer: str) -> list[float]:
    return cut.masks[f"{getattr(small[0], layer).weight.name}.mask"].ravel().tolist()


def test_no_ratio_gives_no_cut(small: Any) -> None:
    assert [target.cuts for target in targets_of(small, [])] == [(), ()]
    net, trace, groups = small
    assert make_targets(net, trace, groups, [], [0.5], Pruner(pruned_ratios=0.5)) == []


def test_masks_spare_the_largest_norms(small: Any) -> None:
    """`stem` is read by `inner` and `head` (depthwise passes it on), `inner` by `outer`."""
    stem, inner = targets_of(small, [0.25, 0.5])
    assert (stem.name, stem.channels) == ("stem", 4)
    for layer in ("inner", "head"):
        assert mask_of(small, stem.cuts[0], layer) == [1, 0, 1, 1]
        assert mask_of(small, stem.cuts[1], layer) == [1, 0, 1, 0]
    assert mask_of(small, inner.cuts[1], "outer") == [1, 1, 1, 0, 0, 0]
    assert [cut.ratio for cut in stem.cuts] == [0.25, 0.5]
    assert [cut.name for cut in inner.cuts] == ["inner@0.25", "inner@0.5"]


def test_readers_and_masks_name_the_same_weights(small: Any) -> None:
    for target in targets_of(small, [0.5]):
        assert sorted(target.cuts[0].masks) == sorted(f"{name}.mask" for name in target.readers)


def test_macs_are_those_downstream(small: Any) -> None:
    """At 8x8 pixels: inner 4x6, outer 6x4 and head 4x2 after `stem`; no inner after `inner`.

    Depthwise reads `stem` before `inner` does and is 3x3 on four channels, where it is masked.
    """
    stem, inner = targets_of(small, [0.5])
    assert inner.macs == 64 * (6 * 4 + 4 * 2)
    assert stem.macs == 64 * (4 * 6 + 6 * 4 + 4 * 2)


def test_cut_of_nothing_has_no_masks_and_warns(
    small: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """0.1 of 4 channels rounds to none, of 6 to one."""
    with caplog.at_level("WARNING", "slim_det"):
        stem, inner = targets_of(small, [0.1])
    assert stem.cuts[0].masks == {} and len(inner.cuts[0].masks) == 1
    assert [r.getMessage() for r in caplog.records] == [
        "stem: ratio 0.1 removes no channel: its loss is 0"
    ]


def test_one_channel_always_remains(small: Any) -> None:
    stem, inner = targets_of(small, [0.99])
    assert mask_of(small, stem.cuts[0], "head") == [1, 0, 0, 0]
    assert mask_of(small, inner.cuts[0], "outer") == [1, 0, 0, 0, 0, 0]


def test_alignment_is_the_pruners(small: Any) -> None:
    """What remains of 6 after 0.5 is 3, and as a multiple of four it is 4."""
    _, inner = targets_of(small, [0.5], align=4)
    assert mask_of(small, inner.cuts[0], "outer") == [1, 1, 1, 1, 0, 0]


@pytest.mark.parametrize("criterion", ["l1_norm", "l2_norm", "fpgm", "random", "bn_scale"])
@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.75])
def test_masks_keep_what_the_plan_keeps(small: Any, criterion: str, ratio: float) -> None:
    """The pruner's slices of each reader's input axis, one group at a time."""
    net, trace, groups = small
    for name, readers in (("stem", ("inner", "head")), ("inner", ("outer",))):
        pruner = Pruner(criterion, pruned_ratios={name: ratio}, seed=3)
        try:
            plan = pruner.plan(net, trace, groups)
        except LayerError:  # `inner` has no batch norm to go by
            assert criterion == "bn_scale" and name == "inner"
            continue
        (target,) = make_targets(net, trace, groups, [name], [ratio], pruner)
        for layer in readers:
            kept = np.flatnonzero(mask_of(small, target.cuts[0], layer)).tolist()
            assert kept == plan.slices[f"{layer}.weight"][1].tolist()


class GroupedNet(paddle.nn.Layer):
    """A convolution of two groups reads six channels, three each."""

    def __init__(self) -> None:
        super().__init__()
        self.first = paddle.nn.Conv2D(3, 6, 1, bias_attr=False)
        self.grouped = paddle.nn.Conv2D(6, 4, 1, groups=2, bias_attr=False)
        self.last = paddle.nn.Conv2D(4, 2, 1, bias_attr=False)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return self.last(F.relu(self.grouped(F.relu(self.first(x)))))


def test_each_group_of_a_convolution_loses_the_same_channels() -> None:
    """Channel j of both groups is one unit; the mask covers all six channels."""
    net = GroupedNet()
    fill_with(net, {"first.weight": _columns([9, 1, 8, 7, 2, 6])})
    trace = trace_plain(net, 1, 3, 8, 8)
    groups = find_groups(net, trace)
    pruner = Pruner(pruned_ratios=0.5)
    (target,) = make_targets(net, trace, groups, ["first"], [0.34], pruner)
    (mask,) = target.cuts[0].masks.values()
    assert mask.shape == (1, 6, 1, 1)
    assert mask.ravel().tolist() == [1, 0, 1, 1, 0, 1]


def test_default_is_every_group_that_can_be_cut(small: Any) -> None:
    net, _, groups = small
    assert choose_groups(net, groups, None) == ["stem", "inner"]
    assert not groups.groups["head"].prunable


def test_names_and_globs_come_in_execution_order(small: Any) -> None:
    net, _, groups = small
    assert choose_groups(net, groups, ["inner", "stem.weight"]) == ["stem", "inner"]
    assert choose_groups(net, groups, ["in*"]) == ["inner"]
    assert choose_groups(net, groups, ["outer", "stem"]) == ["stem"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("inne", "unknown layer 'inne'; did you mean 'inner'?"),
        ("head", "'head' cannot be cut"),
        ("nothing*", "no layer matches 'nothing\\*'"),
    ],
)
def test_wrong_names_are_refused(small: Any, name: str, message: str) -> None:
    net, _, groups = small
    with pytest.raises(LayerError, match=message):
        choose_groups(net, groups, [name])


def test_yolo_head_is_18_layers(traced_detector: tuple[Any, Trace, ModelGroups]) -> None:
    """By default, by name, and together with another layer."""
    model, _, groups = traced_detector
    assert choose_groups(model, groups, None) == list(YOLO_HEAD_LAYERS)
    assert choose_groups(model, groups, ["yolo_head"]) == list(YOLO_HEAD_LAYERS)
    more = choose_groups(model, groups, ["yolo_head", "neck.yolo_transition.0"])
    assert set(more) == {*YOLO_HEAD_LAYERS, "neck.yolo_transition.0"}
    old = choose_groups(model, groups, ["yolo_block.0.tip.conv.weights"])
    assert old == ["neck.yolo_block.0.tip"]
    assert len(choose_groups(model, groups, ["all"])) > 18
