"""Two cuts as one plan: by hand, and on random networks against the cut of both at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest

from slim_det.compress.prune.compose import compose, groups_left, history, slices_between
from slim_det.compress.prune.groups import ModelGroups, find_groups, slices_without
from slim_det.compress.prune.plan import Plan, apply_plan, plan_of
from slim_det.compress.prune.pruner import Pruner
from slim_det.compress.steps import attach_step
from slim_det.core.errors import PlanError
from slim_det.graph.cost import model_cost
from slim_det.graph.trace import Trace
from tests.compress.prune.oracle import Both
from tests.compress.prune.random_graphs import Graph, random_graph
from tests.compress.prune.random_nets import RandomNet
from tests.compress.prune.small_net import SmallNet, small_plan, traced
from tests.compress.prune.test_fuzz import build, random_settings, trace_graph
from tests.support import fill_with, trace_plain

SEEDS = range(120)
SEEDS_IN_A_TEST = 20


def plain(slices: dict[str, dict[int, np.ndarray]]) -> dict[str, dict[int, list[int]]]:
    return {n: {a: k.tolist() for a, k in axes.items()} for n, axes in slices.items()}


def cut(net: paddle.nn.Layer, trace: Trace, groups: ModelGroups, **settings: Any) -> Plan:
    """Cut a network, no detector, as `Pruner.cut` does; gives the plan of this cut alone."""
    plan, before = Pruner(**settings).plan(net, trace, groups), plan_of(net)
    apply_plan(net, plan)
    if before is not None:
        attach_step(net, compose(before, plan))
    return plan


def second_plan() -> Plan:
    """Of what `small_plan` leaves: of inner 1, 2, 5 it keeps 2 and 5; of stem 0, 3 it keeps 3."""
    inner, stem = np.array([1, 2]), np.array([1])
    first = small_plan(SmallNet())
    slices = {
        name: {axis: inner if len(kept) == 3 else stem for axis, kept in axes.items()}
        for name, axes in first.slices.items()
    }
    return Plan(
        architecture="SmallNet",
        tensors={**first.tensors, **first.shapes_after()},
        image_size_hw=(8, 8),
        settings={"criterion": "fpgm"},
        cost={"before": {"macs": 1}, "after": {"macs": 0.5}},
        groups={
            "stem": {"channels": 2, "kept": [1]},
            "inner": {"channels": 3, "kept": [1, 2]},
        },
        slices=slices,
        depthwise={"depthwise.weight": 1},
    )


def test_two_plans_by_hand() -> None:
    first = small_plan(SmallNet())
    both = compose(first, second_plan())
    assert both.groups == {
        "stem": {"channels": 4, "kept": [3]},
        "inner": {"channels": 6, "kept": [2, 5]},
    }
    assert plain(both.slices)["inner.weight"] == {0: [2, 5], 1: [3]}
    assert plain(both.slices)["outer.weight"] == {0: [3], 1: [2, 5]}
    assert plain(both.slices)["bn._mean"] == {0: [3]}
    assert both.depthwise == {"depthwise.weight": 1}
    assert both.cost == {"before": {"macs": 2}, "after": {"macs": 0.5}}
    assert (both.tensors, both.fingerprint) == (first.tensors, first.fingerprint)
    assert both.settings == {"criterion": "fpgm", "earlier": [first.settings]}


def test_what_only_one_plan_cuts() -> None:
    """The first cuts `inner`, the second `stem`: both are in the plan, in either order."""
    net = SmallNet()
    trace, groups = traced(net)
    first = cut(net, trace, groups, pruned_ratios={"inner": 0.5})
    left = groups_left(groups, first)
    second = cut(net, traced(net)[0], left, pruned_ratios={"stem": 0.5})
    both = plan_of(net)
    assert both.groups == {**first.groups, **second.groups}
    assert set(both.slices) == {*first.slices, *second.slices}
    np.testing.assert_array_equal(both.slices["inner.weight"][0], first.slices["inner.weight"][0])
    np.testing.assert_array_equal(both.slices["inner.weight"][1], second.slices["inner.weight"][1])


def test_the_history_grows_and_is_written(tmp_path: Path) -> None:
    first, second = small_plan(SmallNet()), second_plan()
    both = compose(first, second)
    assert history(both.settings) == [first.settings, second.settings]
    path = tmp_path / "model.plan.json"
    both.write(path)
    assert Plan.read(path).settings == both.settings
    assert json.loads(path.read_text())["schema"] == "slim_det.plan/1"


def test_plans_that_do_not_follow_each_other() -> None:
    first, second = small_plan(SmallNet()), second_plan()
    with pytest.raises(PlanError, match=r"do not follow each other: .*\[4, 3, 3, 3\] in the sec"):
        compose(first, small_plan(SmallNet()))
    with pytest.raises(PlanError, match="they are of SmallNet and Other"):
        second.architecture = "Other"
        compose(first, second)
    second = second_plan()
    second.image_size_hw = (16, 16)
    with pytest.raises(PlanError, match=r"costs at \(8, 8\) and \(16, 16\)"):
        compose(first, second)


def test_groups_of_another_model() -> None:
    _, groups = traced(SmallNet())
    plan = small_plan(SmallNet())
    plan.groups["other"] = {"channels": 2, "kept": [0]}
    with pytest.raises(PlanError, match="cuts 'other', which is no group"):
        groups_left(groups, plan)
    for wrong in ([0], [0, 3, 9, 2], []):
        plan = small_plan(SmallNet())
        plan.groups["stem"]["kept"] = wrong
        with pytest.raises(PlanError, match="the plan leaves 2 channels of"):
            groups_left(groups, plan)
    plan = small_plan(SmallNet())
    plan.groups = {}
    with pytest.raises(PlanError, match="its groups leave"):
        groups_left(groups, plan)


class Thin(paddle.nn.Layer):
    """A convolution in two groups that may keep one input channel per group."""

    def __init__(self) -> None:
        super().__init__()
        self.first = paddle.nn.Conv2D(3, 4, 1)
        self.grouped = paddle.nn.Conv2D(4, 8, 1, groups=2)
        self.head = paddle.nn.Conv2D(8, 2, 1)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return self.head(self.grouped(self.first(x)))


def test_units_stay_those_of_the_original_model() -> None:
    """Pruned to one channel per group, the convolution is depthwise to a tracer."""
    net = Thin()
    rows = np.arange(1.0, 9.0).reshape(-1, 1, 1, 1)
    fill_with(net, {"first.weight": rows[:4], "grouped.weight": rows})
    trace = trace_plain(net, 1, 3, 8, 8)
    groups = find_groups(net, trace)
    cut(net, trace, groups, pruned_ratios={"first": 0.5})
    again = trace_plain(net, 1, 3, 8, 8)
    assert len(find_groups(net, again).groups["first"].units) == 2, "traced anew, they differ"
    left = groups_left(groups, plan_of(net))
    assert left.groups["first"].reason == "it has a single channel"
    assert left.groups["grouped"].members[0].parameter == "grouped.weight"
    cut(net, again, left, pruned_ratios={"grouped": 0.5})
    assert plan_of(net).groups == {
        "first": {"channels": 4, "kept": [1]},
        "grouped": {"channels": 8, "kept": [2, 3]},
    }
    assert plain(plan_of(net).slices)["grouped.weight"] == {0: [2, 3, 6, 7], 1: [1]}
    assert net(paddle.ones([1, 3, 4, 4])).shape == [1, 2, 4, 4]


@pytest.mark.parametrize(
    "seeds", [SEEDS[i : i + SEEDS_IN_A_TEST] for i in SEEDS[::SEEDS_IN_A_TEST]], ids=str
)
def test_two_cuts_are_one(seeds: range, float64: None) -> None:
    """Depthwise, grouped, repeated and shared layers among them (see `random_graphs`)."""
    counted = sum(check(seed) for seed in seeds)
    assert counted >= SEEDS_IN_A_TEST // 2, "too few networks could be cut twice"


def check(seed: int) -> bool:
    """Cut the network of a seed twice; False if it cannot be."""
    graph = random_graph(seed)
    try:
        return _check(graph)
    except BaseException:
        print(graph)
        raise


def _check(graph: Graph) -> bool:
    net, original = build(graph), build(graph)
    trace = trace_graph(net, graph)
    groups = find_groups(net, trace)
    first = _cut(graph, net, groups, 0)
    if first is None:
        return False
    second = _cut(graph, net, groups_left(groups, first), 1)
    if second is None:
        return False
    both = plan_of(net)
    removed = np.concatenate(
        [_removed(groups, first), _removed(groups_left(groups, first), second)]
    )
    assert plain(both.slices) == plain(slices_without(groups, removed))
    for name, group in groups.groups.items():
        kept = both.groups.get(name, {"kept": range(len(group.units))})["kept"]
        gone = np.isin(group.units, removed)
        assert np.flatnonzero(~gone).tolist() == list(kept), name
    assert plain(slices_between(first, both)) == plain(second.slices)
    assert (both.tensors, both.fingerprint) == (first.tensors, first.fingerprint)
    assert both.cost["before"] == model_cost(original, trace).as_dict()
    assert both.cost["after"] == model_cost(original, trace, both.shapes_after()).as_dict()
    _check_at_once(graph, net, original, both)
    return True


def _check_at_once(graph: Graph, net: RandomNet, original: RandomNet, both: Plan) -> None:
    """A fresh network cut by the one plan is the one cut twice, and equals the masked network."""
    fresh = build(graph)
    apply_plan(fresh, both)
    right = dict(net.named_parameters())
    for name, param in fresh.named_parameters():
        np.testing.assert_array_equal(param.numpy(), right[name].numpy(), name)
    for (name, layer), (_, other) in zip(fresh.named_sublayers(), net.named_sublayers()):
        assert getattr(layer, "_groups", 1) == getattr(other, "_groups", 1), name
        assert str(layer) == str(other), name
    rng = np.random.default_rng(graph.seed)
    image = rng.normal(size=(2, *graph.ops[0][2]["size"]))
    pair = Both(original, net, both)
    for one in (original, net):
        one.eval()
    pair.check_outputs(image)
    pair.check_gradients(image, graph.seed)


def _cut(graph: Graph, net: RandomNet, groups: ModelGroups, number: int) -> Plan | None:
    """Cut a network in place; the plan of this cut alone, None if nothing could be removed."""
    settings = random_settings(graph, groups, seed=graph.seed + 10_000 * number)
    if settings is None:
        return None
    try:
        return cut(net, trace_graph(net, graph), groups, **settings)
    except PlanError:
        return None


def _removed(groups: ModelGroups, plan: Plan) -> np.ndarray:
    gone: list[Any] = [np.zeros(0, np.int64)]
    for name, entry in plan.groups.items():
        units = groups.groups[name].units
        gone.append(np.delete(units, entry["kept"]))
    return np.concatenate(gone)
