"""Which channels go, with weights set so that the answer is obvious, and what stays."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import paddle
import pytest

from slim_det.compress.prune.importance import CRITERIA
from slim_det.compress.prune.plan import Plan, apply_plan, describe_cost, plan_of
from slim_det.compress.prune.pruner import Pruner
from slim_det.compress.strategy import Context
from slim_det.compress.tensors import tensor_shapes
from slim_det.core.errors import LayerError, PlanError
from tests.compress.prune.small_net import SmallNet, traced
from tests.support import fill_with

INNER = [5.0, -1.0, 4.0, 2.0, -6.0, 3.0]
STEM = [1.0, 4.0, -3.0, 2.0]
OUTER = [9.0, 1.0, 1.0, 9.0]


def by_channel(values: list[float]) -> np.ndarray:
    return np.array(values).reshape(-1, 1, 1, 1)


def small_net() -> SmallNet:
    """Every filter holds one value, so that its size is known."""
    net = SmallNet()
    weights = {"inner": INNER, "stem": STEM, "outer": OUTER}
    fill_with(net, {f"{name}.weight": by_channel(v) for name, v in weights.items()})
    fill_with(net, {"bn.weight": [0.5, -0.1, 0.2, 3.0]})
    return net


def plan_for(net: paddle.nn.Layer, **settings: Any) -> Plan:
    return Pruner(**settings).plan(net, *traced(net))


def slices_of(plan: Plan) -> dict[str, dict[int, list[int]]]:
    return {n: {a: k.tolist() for a, k in axes.items()} for n, axes in plan.slices.items()}


def test_the_smallest_filters_of_one_layer_go() -> None:
    plan = plan_for(small_net(), pruned_params=["inner"], pruned_ratios=[0.5])
    assert slices_of(plan) == {
        "inner.weight": {0: [0, 2, 4]},
        "inner.bias": {0: [0, 2, 4]},
        "outer.weight": {1: [0, 2, 4]},
    }
    assert plan.groups == {"inner": {"channels": 6, "kept": [0, 2, 4]}}
    assert plan.depthwise == {}


def test_the_first_layer_of_a_group_decides_and_all_follow() -> None:
    plan = plan_for(small_net(), pruned_ratios={"outer": 0.5})
    kept = [1, 2]
    assert plan.groups == {"stem": {"channels": 4, "kept": kept}}
    assert slices_of(plan) == {
        "stem.weight": {0: kept},
        "bn.weight": {0: kept},
        "bn.bias": {0: kept},
        "bn._mean": {0: kept},
        "bn._variance": {0: kept},
        "depthwise.weight": {0: kept},
        "depthwise.bias": {0: kept},
        "inner.weight": {1: kept},
        "outer.weight": {0: kept},
        "outer.bias": {0: kept},
        "head.weight": {1: kept},
    }
    assert plan.depthwise == {"depthwise.weight": 2}


@pytest.mark.parametrize(
    ("criterion", "kept"), [("l1_norm", [1, 2]), ("l2_norm", [1, 2]), ("bn_scale", [0, 3])]
)
def test_each_criterion_reads_its_own_numbers(criterion: str, kept: list[int]) -> None:
    plan = plan_for(small_net(), criterion=criterion, pruned_ratios={"stem": 0.5})
    assert plan.groups["stem"]["kept"] == kept


def test_fpgm_removes_what_lies_in_the_middle() -> None:
    net = small_net()
    fill_with(net, {"inner.weight": by_channel([0.0, 10.0, 20.0, 21.0, 40.0, 90.0])})
    plan = plan_for(net, criterion="fpgm", pruned_params="inner", pruned_ratios=1 / 3)
    assert plan.groups["inner"]["kept"] == [0, 1, 4, 5]


def test_equal_filters_go_from_the_front() -> None:
    net = small_net()
    fill_with(net, {"inner.weight": 1.0})
    for criterion in ("l1_norm", "l2_norm", "fpgm"):
        plan = plan_for(net, criterion=criterion, pruned_params="inner", pruned_ratios=0.5)
        assert plan.groups["inner"]["kept"] == [3, 4, 5], criterion


def test_random_follows_its_seed() -> None:
    settings = {"criterion": "random", "pruned_params": "inner", "pruned_ratios": 0.5}
    kept = [plan_for(small_net(), seed=s, **settings).groups["inner"]["kept"] for s in range(12)]
    again = plan_for(small_net(), seed=3, **settings).groups["inner"]["kept"]
    assert kept[3] == again
    assert len({tuple(k) for k in kept}) > 3


def test_what_remains_is_aligned() -> None:
    plan = plan_for(small_net(), pruned_params="all", pruned_ratios=0.4, align=4)
    assert plan.groups == {"inner": {"channels": 6, "kept": [0, 2, 4, 5]}}


ENERGY = {"criterion": "bn_scale", "share_of": "energy"}


@pytest.mark.parametrize(
    ("ratio", "kept"),
    [(0.002, [0, 2, 3]), (0.006, [0, 3]), (0.03, [0, 3]), (0.04, [3]), (0.99, [3])],
)
def test_a_ratio_may_be_a_share_of_the_energy(ratio: float, kept: list[int]) -> None:
    """Squares 0.01, 0.04, 0.25 and 9: the smallest have 0.1, 0.5 and 3.2 % of 9.3."""
    plan = plan_for(small_net(), pruned_ratios={"stem": ratio}, **ENERGY)
    assert plan.groups == {"stem": {"channels": 4, "kept": kept}}
    assert slices_of(plan)["bn.weight"] == {0: kept}
    assert plan.settings["share_of"] == "energy" and plan.settings["ratios"] == {"stem": ratio}


def test_what_remains_of_the_energy_is_aligned() -> None:
    plan = plan_for(small_net(), pruned_ratios={"stem": 0.04}, align=2, **ENERGY)
    assert plan.groups["stem"]["kept"] == [0, 3]


def test_an_energy_that_removes_nothing_is_said_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="slim_det"), pytest.raises(PlanError):
        plan_for(small_net(), pruned_ratios={"stem": 0.0009}, **ENERGY)
    assert "stem: ratio 0.0009 of the energy of 4 channels removes none" in caplog.text


def test_planning_changes_nothing() -> None:
    net = small_net()
    net.train()
    before = {name: param.numpy() for name, param in net.named_parameters()}
    plan_for(net, pruned_ratios=0.5)
    assert net.training
    for name, param in net.named_parameters():
        np.testing.assert_array_equal(param.numpy(), before[name])


def test_the_plan_says_what_was_asked_for_and_what_it_costs() -> None:
    plan = plan_for(small_net(), criterion="fpgm", pruned_ratios=0.5, align=2, seed=9)
    assert plan.settings == {
        "criterion": "fpgm",
        "ratios": {"stem": 0.5, "inner": 0.5},
        "align": 2,
        "seed": 9,
        "share_of": "channels",
        "repair": None,
        "calibration": None,
    }
    pixels = 64
    assert plan.cost["before"]["macs"] == pixels * (4 * 27 + 4 * 9 + 24 + 24 + 8)
    # stem 2, inner 3 -> 4 (aligned)
    assert plan.cost["after"]["macs"] == pixels * (2 * 27 + 2 * 9 + 8 + 8 + 4)
    assert plan.cost["before"]["params"] == 108 + 16 + 40 + 30 + 28 + 10
    assert plan.cost["before"]["params_trainable"] == 108 + 8 + 40 + 30 + 28 + 10
    after = plan.cost["after"]["params"]
    assert after == 54 + 8 + 20 + 12 + 10 + 6
    assert plan.cost["after"]["size_mb"] == pytest.approx(after * 4e-6)
    text = describe_cost(plan)
    assert "pruned 2 groups: MACs at 8x8" not in text, "no image size was traced"
    assert f"{plan.cost['before']['macs']} -> {plan.cost['after']['macs']}" in text


class Partly(paddle.nn.Layer):
    """`narrow` and `wide` side by side, added to `all_of_it`."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow = paddle.nn.Conv2D(3, 2, 1)
        self.wide = paddle.nn.Conv2D(3, 3, 1)
        self.all_of_it = paddle.nn.Conv2D(3, 5, 1)
        self.head = paddle.nn.Conv2D(5, 2, 1)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return self.head(paddle.concat([self.narrow(x), self.wide(x)], 1) + self.all_of_it(x))


class Normed(paddle.nn.Layer):
    """`Partly`, with batch norm behind each layer."""

    def __init__(self) -> None:
        super().__init__()
        for name, channels in (("narrow", 2), ("wide", 3), ("all_of_it", 5)):
            layers = paddle.nn.Conv2D(3, channels, 1), paddle.nn.BatchNorm2D(channels)
            setattr(self, name, paddle.nn.Sequential(*layers))
        self.head = paddle.nn.Conv2D(5, 2, 1)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return self.head(paddle.concat([self.narrow(x), self.wide(x)], 1) + self.all_of_it(x))


def test_every_layer_keeps_a_channel_whatever_its_energy() -> None:
    """All of `narrow` has less than a thousandth of the energy."""
    net = Normed()
    fill_with(net, {"narrow.1.weight": [0.01, 0.02], "wide.1.weight": [7.0, 9.0, 8.0]})
    plan = plan_for(net, pruned_ratios=0.001, **ENERGY)
    assert plan.groups == {"narrow": {"channels": 5, "kept": [1, 2, 3, 4]}}


def test_every_layer_keeps_a_channel() -> None:
    net = Partly()
    fill_with(
        net,
        {
            "narrow.weight": by_channel([1.0, 2.0]),
            "wide.weight": by_channel([7.0, 9.0, 8.0]),
            "all_of_it.weight": by_channel([9.0, 9.0, 1.0, 1.0, 1.0]),
        },
    )
    plan = plan_for(net, pruned_ratios=0.6)
    assert plan.groups == {"narrow": {"channels": 5, "kept": [1, 3]}}
    assert slices_of(plan)["narrow.weight"] == {0: [1]}
    assert slices_of(plan)["wide.weight"] == {0: [1]}
    apply_plan(net, plan)
    assert net(paddle.ones([1, 3, 4, 4])).shape == [1, 2, 4, 4]


class Grouped(paddle.nn.Layer):
    """A convolution in two groups reads `first`."""

    def __init__(self) -> None:
        super().__init__()
        self.first = paddle.nn.Conv2D(3, 6, 1)
        self.second = paddle.nn.Conv2D(6, 4, 1, groups=2)
        self.head = paddle.nn.Conv2D(4, 2, 1)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return self.head(self.second(self.first(x)))


def test_channels_of_both_groups_are_scored_together() -> None:
    net = Grouped()
    fill_with(net, {"first.weight": by_channel([1.0, 5.0, 3.0, 9.0, 1.0, 4.0])})
    plan = plan_for(net, pruned_params="first", pruned_ratios=1 / 3)
    assert slices_of(plan)["first.weight"] == {0: [0, 2, 3, 5]}
    assert slices_of(plan)["second.weight"] == {1: [0, 2]}


@pytest.mark.parametrize("names", [["stem"], ["depthwise"], ["outer.weight"], ["stem", "outer"]])
def test_any_layer_of_a_group_names_it(names: list[str]) -> None:
    plan = plan_for(small_net(), pruned_params=names, pruned_ratios=0.5)
    assert list(plan.groups) == ["stem"]


@pytest.mark.parametrize("spelling", ["all", "*", "*e*"])
def test_a_glob_passes_over_what_cannot_be_cut(
    spelling: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="slim_det"):
        plan = plan_for(small_net(), pruned_params=spelling, pruned_ratios=0.5)
    assert set(plan.groups) == {"stem", "inner"}
    assert f"'{spelling}': 1 groups cannot be cut and stay unpruned" in caplog.text


MISTAKES = [
    ({"head": 0.5}, "'head' cannot be cut: it is an output of the model"),
    ({"head.weight": 0.5}, "'head.weight' cannot be cut: it is an output of the model"),
    ({"hea*": 0.5}, "nothing to prune: no layer that 'hea*' names can be cut"),
    ({"stem": 0.5, "outer": 0.25}, "'outer' (0.25) and 'stem' (0.5) are cut together as group"),
    ({"stem": 0.5, "*": 0.25}, "'*' (0.25) and 'stem' (0.5) are cut together as group 'stem'"),
    ({"iner": 0.5}, "unknown layer 'iner'; did you mean 'inner'?"),
    ({"x*": 0.5}, "no layer matches 'x*'"),
]


def test_in_a_list_the_first_ratio_of_a_group_counts(caplog: pytest.LogCaptureFixture) -> None:
    """As in PaddleSlim, with a line that says so."""
    names = ["stem", "outer", "inner"]
    plan = plan_for(small_net(), pruned_params=names, pruned_ratios=[0.5, 0.25, 0.5])
    same = plan_for(small_net(), pruned_params=["stem", "inner"], pruned_ratios=0.5)
    assert plan.groups == same.groups
    said = (
        "'outer' (0.25) and 'stem' (0.5) are cut together as group 'stem'; 0.5, which comes first"
    )
    assert said in caplog.text


@pytest.mark.parametrize(("ratios", "message"), MISTAKES)
def test_mistakes_in_names(ratios: dict[str, float], message: str) -> None:
    with pytest.raises(LayerError) as caught:
        plan_for(small_net(), pruned_ratios=ratios)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_same_ratio_twice_is_no_conflict() -> None:
    plan = plan_for(small_net(), pruned_ratios={"stem": 0.5, "outer": 0.5})
    assert plan.settings["ratios"] == {"stem": 0.5}


def test_nothing_to_prune_is_an_error() -> None:
    with pytest.raises(PlanError, match="nothing to prune: every ratio removes less than one"):
        plan_for(small_net(), pruned_ratios=0.01)


def test_a_ratio_that_removes_nothing_is_said_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="slim_det"):
        plan = plan_for(small_net(), pruned_ratios={"stem": 0.1, "inner": 0.5})
    assert list(plan.groups) == ["inner"]
    assert "stem: ratio 0.1 of 4 channels removes none" in caplog.text


def test_bn_scale_without_batch_norm_is_an_error() -> None:
    with pytest.raises(LayerError, match="'inner.weight': bn_scale needs a batch norm"):
        plan_for(small_net(), criterion="bn_scale", pruned_ratios={"inner": 0.5})


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_an_error(value: float) -> None:
    net = small_net()
    fill_with(net, {"inner.weight": value})
    with pytest.raises(LayerError, match=r"'inner\.weight' holds weights that are not finite"):
        plan_for(net, pruned_ratios={"inner": 0.5})


def test_a_batch_norm_that_is_not_finite_is_named() -> None:
    net = small_net()
    fill_with(net, {"bn.weight": np.nan})
    with pytest.raises(LayerError, match=r"'bn\.weight' holds weights that are not finite"):
        plan_for(net, criterion="bn_scale", pruned_ratios={"stem": 0.5})


@pytest.mark.parametrize("scores", [np.zeros(3), np.zeros((6, 1)), 0.0, np.full(6, np.nan)])
def test_scores_that_do_not_fit_are_an_error(monkeypatch: pytest.MonkeyPatch, scores: Any) -> None:
    monkeypatch.setitem(CRITERIA, "own", lambda filters, scale, rng: scores)
    with pytest.raises(LayerError, match=r"'inner\.weight': criterion 'own' .* 6 finite numbers"):
        plan_for(small_net(), criterion="own", pruned_ratios={"inner": 0.5})


class Detector(SmallNet):
    """Takes what a detector of ppdet takes."""

    def forward(self, inputs: dict[str, paddle.Tensor]) -> paddle.Tensor:
        return super().forward(inputs["image"])


class TwoFaced(SmallNet):
    """Does more work as soon as a layer has another width."""

    def forward(self, inputs: dict[str, paddle.Tensor]) -> paddle.Tensor:
        x = self.stem(inputs["image"])
        y = self.outer(self.inner(x))
        return self.head(y if self.inner.weight.shape[0] == 6 else y + self.outer(self.inner(x)))


def test_a_detector_is_cut_in_place_and_remembers_its_plan() -> None:
    net = Detector()
    assert Pruner(pruned_ratios={"inner": 0.5})(net, Context({}, (16, 24))) is net
    plan = plan_of(net)
    assert plan is not None
    assert plan.image_size_hw == (16, 24)
    assert plan.architecture == "Detector"
    assert tensor_shapes(net)["inner.weight"] == (3, 4, 1, 1)
    assert net({"image": paddle.ones([2, 3, 5, 5])}).shape == [2, 2, 5, 5]
    assert "pruned 1 groups: MACs at 16x24" in describe_cost(plan)


def test_a_model_whose_work_depends_on_its_width_is_refused() -> None:
    with pytest.raises(PlanError, match="the model's code holds channel numbers"):
        Pruner(pruned_ratios={"inner": 0.5})(TwoFaced(), Context({}, (8, 8)))


def test_parameters_are_printed_on_request(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="slim_det"):
        Pruner(pruned_ratios={"inner": 0.5}, print_params=True)(Detector(), Context({}, (8, 8)))
    assert "parameter inner.weight, shape [6, 4, 1, 1]" in caplog.text
