"""Weights that are pruned already: cut again on request, refused or left alone otherwise."""

from __future__ import annotations

from typing import Any

import paddle
import pytest

from slim_det.compress.prune.plan import Plan, plan_of
from slim_det.compress.prune.pruner import Pruner
from slim_det.compress.steps import attach_step
from slim_det.compress.strategy import Context
from slim_det.compress.tensors import tensor_shapes
from slim_det.core.errors import ConfigError, LayerError, PlanError, SlimDetError
from tests.compress.prune.test_pruner import Detector, by_channel
from tests.support import fill_with

INNER = [5.0, -1.0, 4.0, 2.0, -6.0, 3.0]
CHANNELS = {"first": [0, 2, 4], "second": [0, 4]}
"""Channels of `inner` that are left after 50 % of 6, and then a third of the 3."""


@pytest.fixture(autouse=True)
def _registered(ppdet_registered: None) -> None:
    """What names of strategies mean."""


def detector() -> Detector:
    net = Detector()
    fill_with(net, {"inner.weight": by_channel(INNER)})
    return net


def context(purpose: Any = "train", **cfg: Any) -> Context:
    return Context(cfg, (16, 24), purpose, "w", "slim.yml", build_detector=detector)


def pruned(**settings: Any) -> Detector:
    net = detector()
    Pruner(**{"pruned_ratios": {"inner": 0.5}, **settings})(net, context())
    return net


def adopt(net: paddle.nn.Layer, purpose: Any, cfg: Any = None, **settings: Any) -> Plan:
    plan = plan_of(net)
    assert plan is not None
    Pruner(**settings).adopt(net, plan, context(purpose, **(cfg or {})))
    return plan_of(net)


def kept(plan: Plan) -> list[int]:
    return plan.groups["inner"]["kept"]


def test_what_is_left_is_cut_again() -> None:
    """The first plan and the second as one; the ratio is a share of three channels."""
    net, twin = pruned(), detector()
    first = plan_of(net)
    plan = adopt(net, "train", pruned_ratios={"inner": 1 / 3}, again=True)
    assert kept(first) == CHANNELS["first"] and kept(plan) == CHANNELS["second"]
    assert plan.settings == {
        "criterion": "l1_norm",
        "ratios": {"inner": 1 / 3},
        "align": 1,
        "seed": 0,
        "share_of": "channels",
        "repair": None,
        "calibration": None,
        "again": True,
        "earlier": [first.settings],
    }
    at_once = Pruner(pruned_ratios={"inner": 2 / 3})(twin, context())
    assert plan.differs(plan_of(at_once)) == ""
    assert plan.cost == plan_of(at_once).cost
    assert tensor_shapes(net) == tensor_shapes(at_once)


def test_another_group_is_cut_the_second_time() -> None:
    plan = adopt(pruned(), "train", pruned_ratios={"stem": 0.5}, again=True)
    assert list(plan.groups) == ["inner", "stem"]
    assert plan.groups["stem"]["channels"] == 4


def test_costs_stay_at_the_image_size_of_the_plan() -> None:
    net = pruned()
    asked = Context({}, (32, 32), "train", "w", "slim.yml", build_detector=detector)
    Pruner(pruned_ratios={"inner": 1 / 3}, again=True).adopt(net, plan_of(net), asked)
    assert plan_of(net).image_size_hw == (16, 24)


@pytest.mark.parametrize("purpose", ["train", "resume", "use", "calibrate"])
def test_another_cut_has_to_be_asked_for(purpose: str) -> None:
    net = pruned()
    with pytest.raises(PlanError) as caught:
        adopt(net, purpose, pruned_ratios={"inner": 1 / 3})
    assert str(caught.value) == (
        "'w' was already cut, with l1_norm, in another way than slim.yml asks for; leave "
        "--slim_config out, start from unpruned weights, or set Pruner.again: true to cut what "
        "is left"
    )
    assert kept(plan_of(net)) == CHANNELS["first"]


@pytest.mark.parametrize("purpose", ["train", "resume", "use", "calibrate"])
def test_the_same_cut_is_not_made_twice(purpose: str) -> None:
    assert kept(adopt(pruned(), purpose, pruned_ratios={"inner": 0.5})) == CHANNELS["first"]


@pytest.mark.parametrize("purpose", ["resume", "use", "calibrate"])
def test_what_was_cut_again_stays(purpose: str) -> None:
    """When its training is resumed, or the same slim file is given to another command."""
    again = {"pruned_ratios": {"inner": 1 / 3}, "again": True}
    net = pruned()
    adopt(net, "train", **again)
    assert kept(adopt(net, purpose, **again)) == CHANNELS["second"]


def test_each_training_cuts_again() -> None:
    """One slim file, three times in a row: 6, 4, 3 and 2 channels."""
    again = {"pruned_ratios": {"inner": 1 / 3}, "again": True}
    net = pruned(**again)
    assert plan_of(net).settings["again"] is True
    widths = [len(kept(plan_of(net)))]
    for _ in range(2):
        widths.append(len(kept(adopt(net, "train", **again))))
    assert widths == [4, 3, 2]
    assert len(plan_of(net).settings["earlier"]) == 2


def test_the_loss_from_the_second_cut_can_be_measured() -> None:
    plan = adopt(pruned(), "use", pruned_ratios={"inner": 1 / 3}, again=True)
    assert kept(plan) == CHANNELS["second"]


def test_weights_that_were_not_cut_again_are_not_resumed() -> None:
    net = pruned()
    with pytest.raises(ConfigError, match="'w' was not cut again as slim.yml asks, .* instead of"):
        adopt(net, "resume", pruned_ratios={"inner": 1 / 3}, again=True)
    assert kept(plan_of(net)) == CHANNELS["first"]


def of_an_earlier_version(net: paddle.nn.Layer, **settings: Any) -> None:
    """Leave only the settings that the first version wrote."""
    plan = plan_of(net)
    own = {key: plan.settings[key] for key in ("criterion", "ratios", "align", "seed")}
    plan.settings = {**own, **settings}


def test_plans_of_earlier_versions_can_be_cut_again() -> None:
    net = pruned()
    of_an_earlier_version(net, criterion="fpgm", seed=9)
    earlier = dict(plan_of(net).settings)
    plan = adopt(net, "train", pruned_ratios={"inner": 1 / 3}, again=True)
    assert kept(plan) == CHANNELS["second"] and plan.settings["earlier"] == [earlier]


@pytest.mark.parametrize("purpose", ["train", "resume", "use", "calibrate"])
def test_plans_of_earlier_versions_are_what_a_slim_file_without_new_keys_asks_for(
    purpose: str,
) -> None:
    net = pruned()
    of_an_earlier_version(net)
    plan = plan_of(net)
    asked = {"pruned_ratios": {"inner": 0.5}}
    assert adopt(net, purpose, **asked) is plan
    for more in ({"repair": "least_squares"}, {"criterion": "elimination"}):
        with pytest.raises(PlanError, match="'w' was already cut, with l1_norm, in another way"):
            adopt(net, purpose, **asked, **more)
    of_an_earlier_version(net, criterion="bn_scale")
    energy = {"criterion": "bn_scale", "share_of": "energy"}
    with pytest.raises(PlanError, match="'w' was already cut, with bn_scale, in another way"):
        adopt(net, purpose, **asked, **energy)


def test_a_group_with_one_channel_left() -> None:
    net = pruned(pruned_ratios={"inner": 0.9, "stem": 0.5})
    with pytest.raises(LayerError, match="'inner' cannot be cut: it has a single channel"):
        adopt(net, "train", pruned_ratios={"inner": 0.5}, again=True)
    assert len(kept(adopt(net, "train", pruned_ratios=0.5, again=True))) == 1


def test_quantized_weights_are_not_cut() -> None:
    from slim_det.compress.quantize.record import QuantRecord

    net = pruned()
    attach_step(net, QuantRecord.__new__(QuantRecord))
    with pytest.raises(SlimDetError, match="'w' are quantized and slim.yml asks for Pruner"):
        adopt(net, "train", pruned_ratios={"inner": 0.5}, again=True)


@pytest.mark.parametrize("value", [1, "true", None, []])
def test_again_is_true_or_false(value: Any) -> None:
    with pytest.raises(ConfigError, match="Pruner.again: .* is not valid; expected true or false"):
        Pruner(pruned_ratios=0.5, again=value)


SCHEDULE = {"pruned_ratios": {"inner": 2 / 3}, "schedule": {"steps": 2, "epochs": 3}}


def test_training_begins_with_the_first_step() -> None:
    """Of 6 channels two thirds go: 6 / sqrt(3) are left after the first step."""
    plan = plan_of(pruned(**SCHEDULE))
    assert kept(plan) == CHANNELS["first"]
    assert plan.continues
    assert plan.settings["ratios"] == {"inner": 2 / 3}
    assert plan.settings["schedule"] == {
        "asked": {"epochs": 3, "steps": 2},
        "kept": {"inner": [3, 2]},
        "done": 1,
    }


@pytest.mark.parametrize("purpose", ["use", "calibrate"])
def test_without_training_the_ratios_are_reached_at_once(purpose: str) -> None:
    net = detector()
    Pruner(**SCHEDULE)(net, context(purpose))
    assert kept(plan_of(net)) == CHANNELS["second"]
    assert "schedule" not in plan_of(net).settings


def test_steps_need_their_epochs() -> None:
    net = detector()
    with pytest.raises(ConfigError, match="2 steps of 3 epochs take 6 and epoch is 5; add -o epoc"):
        Pruner(**SCHEDULE)(net, context(epoch=5))
    assert plan_of(net) is None and tensor_shapes(net) == tensor_shapes(detector())
    Pruner(**SCHEDULE)(net, context(epoch=6))


def test_a_schedule_begins_with_a_training() -> None:
    with pytest.raises(ConfigError, match="'w' has had no step of the schedule .* instead of -r"):
        Pruner(**SCHEDULE)(detector(), context("resume"))


def test_the_next_step_is_by_the_weights_of_then() -> None:
    net = pruned(**SCHEDULE)
    first = plan_of(net)
    fill_with(net, {"inner.weight": by_channel([1.0, 7.0, 8.0])})
    Pruner.advance(net, first, context())
    plan = plan_of(net)
    assert kept(plan) == [2, 4]
    assert plan.continues and plan.steps.is_complete
    assert plan.settings == {
        **first.settings,
        "schedule": {**first.settings["schedule"], "done": 2},
    }
    assert plan.cost["before"] == first.cost["before"]
    Pruner.advance(net, plan, context())
    assert plan_of(net) is plan, "no step is left"


def test_a_schedule_for_what_is_left() -> None:
    net = pruned(pruned_ratios={"stem": 0.5})
    before = plan_of(net).settings
    plan = adopt(net, "train", **SCHEDULE, again=True)
    assert plan.settings["earlier"] == [before]
    Pruner.advance(net, plan, context())
    plan = plan_of(net)
    assert kept(plan) == CHANNELS["second"] and plan.settings["earlier"] == [before]


def test_between_two_steps() -> None:
    """Resumed with the same slim file or without; measured with any that has the same ratios."""
    net = pruned(**SCHEDULE)
    for purpose in ("resume", "use", "calibrate"):
        assert adopt(net, purpose, **SCHEDULE).steps.done == 1
    assert adopt(net, "use", pruned_ratios=SCHEDULE["pruned_ratios"]).steps.done == 1
    with pytest.raises(PlanError, match="'w' has had 1 of 2 steps of its schedule; resume it"):
        adopt(net, "train", **SCHEDULE)
    for schedule in (None, {"steps": 2, "epochs": 4}, {"macs_per_step": 0.1, "epochs": 3}):
        other = {**SCHEDULE, "schedule": schedule}
        with pytest.raises(PlanError, match="which is not the one of slim.yml; resume without"):
            adopt(net, "resume", **other)


def test_after_the_last_step() -> None:
    net = pruned(**SCHEDULE)
    Pruner.advance(net, plan_of(net), context())
    for purpose in ("train", "resume", "use"):
        assert adopt(net, purpose, **SCHEDULE).steps.is_complete
    assert adopt(net, "train", pruned_ratios=SCHEDULE["pruned_ratios"]).steps.is_complete


def test_steps_by_macs_end_at_the_ratios() -> None:
    """With as many steps as it takes to remove a third of the MACs a tenth at a time."""
    settings = {"pruned_ratios": {"stem": 0.5, "inner": 0.5}}
    net = pruned(**settings, schedule={"macs_per_step": 0.2, "epochs": 1})
    plan = plan_of(net)
    while not plan.steps.is_complete:
        Pruner.advance(net, plan, context())
        plan = plan_of(net)
    at_once = plan_of(pruned(**settings))
    assert plan.steps.count > 1
    assert {n: len(e["kept"]) for n, e in plan.groups.items()} == {
        n: len(e["kept"]) for n, e in at_once.groups.items()
    }
    assert plan.cost == at_once.cost
