"""Factors against the cost of the very plan that the pruner makes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import paddle
import pytest

from slim_det.compress.prune.groups import find_groups
from slim_det.compress.prune.plan import Plan
from slim_det.compress.prune.pruner import Pruner
from slim_det.core.errors import PlanError
from slim_det.graph.cost import model_cost
from slim_det.planning.budget.costs import (
    FactorBuilder,
    TracedModel,
    latency_rule,
    macs_rule,
    params_rule,
    uneven_groups,
)
from slim_det.planning.budget.options import Limits, allowed_removals, ratio_for
from slim_det.planning.budget.problem import Problem
from slim_det.planning.profile.shapes import ConvShape, conv_shapes
from tests.compress.prune.random_graphs import random_graph
from tests.compress.prune.random_nets import RandomNet
from tests.compress.prune.small_net import SmallNet, traced
from tests.planning.budget.models import traced_model
from tests.support import restored_config, trace_plain

SEEDS = range(60)


@pytest.fixture(scope="module")
def tiny_model(tiny: Path, ppdet_registered: None) -> Iterator[TracedModel]:
    with restored_config():
        yield traced_model(tiny)


def small() -> TracedModel:
    net = SmallNet()
    trace, groups = traced(net)
    return TracedModel(net, trace, groups)


def plan_of(model: TracedModel, removed: dict[str, int], align: int = 1) -> Plan:
    groups = model.groups.groups
    ratios = {n: ratio_for(len(groups[n].units), r, align) for n, r in removed.items() if r}
    return Pruner(pruned_ratios=ratios, align=align).plan(model.model, model.trace, model.groups)


def toy_latency(shape: ConvShape) -> float:
    """Any rule will do that no other shape gives the same value by."""
    return shape.in_channels * 1.7 + shape.out_channels * 0.3 + shape.macs * 1e-3 + shape.groups


def prunable(model: TracedModel) -> list[str]:
    return [name for name, group in model.groups.groups.items() if group.prunable]


def test_widths_multiply_and_couple() -> None:
    """Worked out by hand for 8x8 pixels: stem 3->4, depthwise, inner 4->6, outer 6->4, head 4->2.

    With a stem of w and an inner of v channels: MACs 64 x (27 w + 9 w + 2 v w + 2 w).
    """
    model = small()
    options = [[0, 2], [0, 1, 3]]
    constant, factors = FactorBuilder(model, ["stem", "inner"]).build(options, macs_rule(model))
    problem = Problem((np.zeros(2), np.zeros(3)), factors, constant)
    assert {factor.scope for factor in factors} <= {(0,), (1,), (0, 1)}
    for i, w in enumerate([4, 2]):
        for j, v in enumerate([6, 5, 3]):
            assert problem.cost((i, j)) == 64 * (27 * w + 9 * w + 2 * v * w + 2 * w)


def test_cost_of_other_groups_is_constant() -> None:
    model = small()
    constant, factors = FactorBuilder(model, []).build([], params_rule)
    assert factors == () and constant == model_cost(model.model, model.trace).params


def assert_adds_up(model: TracedModel, rng: np.random.Generator) -> bool:
    """Random numbers of units of every group cost what the pruner's plan costs."""
    names = prunable(model)
    most = {0.9: 0.0}
    allowed = [allowed_removals(model.groups.groups[n], most, Limits()) for n in names]
    options = [sorted({0, *rng.choice(own, min(3, len(own))).tolist()}) for own in allowed]
    picked = [int(rng.integers(len(own))) for own in options]
    removed = {name: own[i] for name, own, i in zip(names, options, picked)}
    if not any(removed.values()):
        return False
    try:
        plan = plan_of(model, removed)
    except PlanError:  # two layers of one channel each, side by side
        return False
    builder = FactorBuilder(model, names)
    penalties = tuple(np.zeros(len(own)) for own in options)
    for rule, key in ((macs_rule(model), "macs"), (params_rule, "params")):
        constant, factors = builder.build(options, rule)
        problem = Problem(penalties, factors, constant)
        assert problem.cost([0] * len(names)) == plan.cost["before"][key]
        assert problem.cost(picked) == plan.cost["after"][key]
    return True


def test_random_networks_add_up() -> None:
    """Residuals, repeated concatenation, grouped, shared, transposed convolutions, gates."""
    checked = uneven = 0
    for seed in SEEDS:
        paddle.seed(seed)
        graph = random_graph(seed)
        net = RandomNet(graph.ops)
        trace = trace_plain(net, 1, *graph.ops[0][2]["size"])
        model = TracedModel(net, trace, find_groups(net, trace))
        checked += assert_adds_up(model, np.random.default_rng(seed))
        uneven += not uneven_groups(model.groups).isdisjoint(prunable(model))
    assert checked > 40 and uneven > 0


def test_detector_adds_up(tiny_model: TracedModel) -> None:
    """Every group of backbone and head at once, depthwise and concatenations included."""
    assert len(prunable(tiny_model)) > 30 and not uneven_groups(tiny_model.groups)
    for seed in range(3):
        assert assert_adds_up(tiny_model, np.random.default_rng(seed))


def test_latency_is_that_of_the_cut_convolutions(tiny_model: TracedModel) -> None:
    names = prunable(tiny_model)
    groups = tiny_model.groups.groups
    removed = {name: len(groups[name].units) // 4 for name in names}
    plan = plan_of(tiny_model, removed)
    builder = FactorBuilder(tiny_model, names)
    constant, factors = builder.build(
        [[0, removed[name]] for name in names], latency_rule(tiny_model, toy_latency)
    )
    problem = Problem(tuple(np.zeros(2) for _ in names), factors, constant)
    for choice, shapes in ((0, None), (1, plan.shapes_after())):
        expected = sum(toy_latency(s) for _, s in conv_shapes(tiny_model.trace, shapes))
        assert problem.cost([choice] * len(names)) == pytest.approx(expected, rel=1e-12)
