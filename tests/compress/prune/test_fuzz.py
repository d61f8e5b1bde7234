"""Random networks, pruned at random: groups by known truth, results against masked networks.

To see one network again: ``print(random_graph(SEED))``; to run its checks: ``check(SEED)``.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import paddle
import pytest
from paddle.static import InputSpec

from slim_det.compress.prune.groups import ModelGroups, find_groups
from slim_det.compress.prune.plan import Plan, apply_plan
from slim_det.compress.prune.pruner import Pruner
from slim_det.core.errors import PlanError
from slim_det.graph.cost import model_cost
from slim_det.graph.trace import Trace, trace_layer
from tests.compress.prune.known_truth import Truth, known_truth
from tests.compress.prune.oracle import Both
from tests.compress.prune.random_graphs import (
    HEADS,
    MOTIFS,
    NEWER_MOTIFS,
    Graph,
    random_graph,
)
from tests.compress.prune.random_nets import RandomNet, fill

FAST_SEEDS = range(200)
SLOW_SEEDS = range(200, 2200)
NEWER_SEEDS, NEWER_SLOW_SEEDS = range(40), range(40, 640)
SEEDS_IN_A_TEST = 20
MOSTLY_NEWER = (*MOTIFS, *NEWER_MOTIFS * 7)
BATCH = 2


def _chunks(seeds: range) -> list[range]:
    return [seeds[i : i + SEEDS_IN_A_TEST] for i in range(0, len(seeds), SEEDS_IN_A_TEST)]


@pytest.mark.parametrize("seeds", _chunks(FAST_SEEDS), ids=str)
def test_pruned_equals_masked(seeds: range, float64: None) -> None:
    for seed in seeds:
        check(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", _chunks(SLOW_SEEDS), ids=str)
def test_pruned_equals_masked_on_many(seeds: range, float64: None) -> None:
    for seed in seeds:
        check(seed)


@pytest.mark.parametrize("seeds", _chunks(NEWER_SEEDS), ids=str)
def test_pruned_equals_masked_with_newer_motifs(seeds: range, float64: None) -> None:
    for seed in seeds:
        check(seed, newer=True)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", _chunks(NEWER_SLOW_SEEDS), ids=str)
def test_pruned_equals_masked_with_newer_motifs_on_many(seeds: range, float64: None) -> None:
    for seed in seeds:
        check(seed, newer=True)


def test_newer_motifs_are_cut_unless_they_shuffle() -> None:
    graphs = [random_graph(seed, MOSTLY_NEWER) for seed in NEWER_SEEDS]
    seen = Counter(feature for graph in graphs for feature in graph.features)
    for motif in NEWER_MOTIFS:
        assert seen[motif.__name__] >= len(graphs) // 5, motif
    calm = [graph for graph in graphs if "channel_shuffle" not in graph.features]
    assert np.mean([sum(t.prunable for t in known_truth(graph.ops)) for graph in calm]) > 2.0


def test_the_networks_are_worth_the_run() -> None:
    """Every motif occurs in a good share of them, and most layers can be pruned."""
    graphs = [random_graph(seed) for seed in FAST_SEEDS]
    seen = Counter(feature for graph in graphs for feature in graph.features)
    for feature in (*(motif.__name__ for motif in MOTIFS), *HEADS):
        assert seen[feature] >= len(graphs) // 15, feature
    truths = [known_truth(graph.ops) for graph in graphs]
    prunable = [sum(t.prunable for t in truth) for truth in truths]
    frozen = [sum(t.frozen for t in truth) for truth in truths]
    coupled = [any(t.prunable and len(t.weights) > 1 for t in truth) for truth in truths]
    assert np.mean(prunable) > 2.0
    assert np.mean(np.array(prunable) > 0) > 0.9
    assert np.mean(np.array(frozen) > 1) > 0.5
    assert np.mean(coupled) > 0.2


def test_a_seed_names_one_network() -> None:
    assert str(random_graph(7)) == str(random_graph(7))
    assert str(random_graph(7)) != str(random_graph(8))


def check(seed: int, newer: bool = False) -> None:
    """Make the network of a seed, prune it, compare; a failure shows how to make it again."""
    graph = random_graph(seed, MOSTLY_NEWER if newer else MOTIFS)
    try:
        _check(graph)
    except BaseException:
        print(graph)
        raise


def _check(graph: Graph) -> None:
    net = build(graph)
    trace = trace_graph(net, graph)
    groups = find_groups(net, trace)
    _check_groups(groups, known_truth(graph.ops))
    _check_unknown_operators(groups, graph)
    settings = random_settings(graph, groups)
    if settings is None:
        return
    pruner = Pruner(**settings)
    expected = {
        name: _units_removed(len(groups.groups[name].units), ratio, settings["align"])
        for name, ratio in settings["pruned_ratios"].items()
    }
    if not any(expected.values()):
        with pytest.raises(PlanError, match="nothing to prune"):
            pruner.plan(net, trace, groups)
        return
    try:
        plan = pruner.plan(net, trace, groups)
    except PlanError:
        # Two layers of one channel each, side by side: neither may lose it.
        assert all(_all_held(groups, name) for name, count in expected.items() if count)
        return
    _check_plan(plan, groups, expected)
    _check_result(graph, plan, net)


def _check_groups(groups: ModelGroups, truth: list[Truth]) -> None:
    """Exactly the groups that are known to be prunable are, each with its known layers."""
    assert set(groups.member_of) == {weight for known in truth for weight in known.weights}
    for known in truth:
        for weight in known.weights:
            group = groups.groups[groups.member_of[weight]]
            assert group.prunable == known.prunable, (weight, group.reason, known)
            assert bool(group.reason) != group.prunable, weight
            if known.prunable:
                assert {member.parameter for member in group.members} == known.weights
                assert len(group.units) == known.units, weight


def _check_unknown_operators(groups: ModelGroups, graph: Graph) -> None:
    """The reason names the operator that has no rule."""
    for kind, inputs, _ in graph.ops:
        if kind in ("softmax", "cumsum"):
            _, _, settings = graph.ops[inputs[0]]
            weight = f"conv{settings.get('same_as', inputs[0])}.weight"
            assert f"operator '{kind}'" in groups.groups[groups.member_of[weight]].reason


def _check_plan(plan: Plan, groups: ModelGroups, expected: dict[str, int]) -> None:
    """Every group lost the requested share, and no other tensor is touched."""
    removed: dict[int, bool] = {}
    for name, count in expected.items():
        group = groups.groups[name]
        kept = plan.groups.get(name, {"kept": range(len(group.units))})["kept"]
        assert len(kept) == len(group.units) - count or _all_held(groups, name), name
        removed.update({unit: i not in kept for i, unit in enumerate(group.units.tolist())})
    for axis in groups.axes:
        kept = [i for i, unit in enumerate(axis.ids.tolist()) if not removed.get(unit)]
        sliced = plan.slices.get(axis.parameter, {}).get(axis.axis, np.arange(len(axis.ids)))
        assert sliced.tolist() == kept, (axis.parameter, axis.axis)
        assert kept, f"nothing is left of {axis.parameter}"
    known = {(axis.parameter, axis.axis) for axis in groups.axes}
    assert {(name, axis) for name, axes in plan.slices.items() for axis in axes} <= known


def _check_result(graph: Graph, plan: Plan, net: RandomNet) -> None:
    pruned = build(graph)
    names = {name: param.name for name, param in pruned.named_parameters()}
    apply_plan(pruned, plan)
    assert {name: param.name for name, param in pruned.named_parameters()} == names
    _check_ordinary(pruned, net, plan)
    assert model_cost(pruned, trace_graph(pruned, graph)).as_dict() == plan.cost["after"]
    both, shape = Both(net, pruned, plan), graph.ops[0][2]["size"]
    rng = np.random.default_rng(graph.seed)
    image = rng.normal(size=(BATCH, *shape))
    net.eval()
    pruned.eval()
    both.check_outputs(image)
    both.check_gradients(image, graph.seed)
    if graph.any_size:
        both.check_outputs(rng.normal(size=(BATCH, shape[0], shape[1] + 2, shape[2] + 3)))
    net.train()
    pruned.train()
    both.check_outputs(image)
    both.check_running_statistics()


def _check_ordinary(pruned: RandomNet, unpruned: RandomNet, plan: Plan) -> None:
    """The pruned network has the same plain layers, with the right channel counts."""
    assert list(pruned.state_dict()) == list(unpruned.state_dict())
    assert [n for n, _ in pruned.named_buffers()] == [n for n, _ in unpruned.named_buffers()]
    shapes = plan.tensors | plan.shapes_after()
    right = dict(unpruned.named_parameters())
    for name, param in pruned.named_parameters():
        assert tuple(param.shape) == shapes[name], name
        assert param.stop_gradient == right[name].stop_gradient, name
    for (name, layer), (_, other) in zip(pruned.named_sublayers(), unpruned.named_sublayers()):
        assert type(layer) is type(other), name
        assert not layer._forward_pre_hooks and not layer._forward_post_hooks, name
        if type(layer) is paddle.nn.Conv2D:
            width = [layer._out_channels, layer._in_channels // layer._groups]
            assert width == layer.weight.shape[:2], name
        if type(layer) is paddle.nn.Conv2DTranspose:
            width = [layer._in_channels, layer._out_channels // layer._groups]
            assert width == layer.weight.shape[:2], name
        if type(layer) is paddle.nn.BatchNorm2D:
            assert [layer._num_features] == layer.weight.shape, name


def random_settings(
    graph: Graph, groups: ModelGroups, seed: int | None = None
) -> dict[str, Any] | None:
    """A pruner's arguments: some of the prunable groups, each with its own ratio.

    Args:
        graph: The network.
        groups: Its groups.
        seed: Everything random follows from it; by default from the network's.
    """
    rng = np.random.default_rng(graph.seed if seed is None else seed)
    names = [group.name for group in groups.groups.values() if group.prunable]
    chosen = [name for name in names if rng.random() < 0.85] or names[:1]
    if not chosen:
        return None
    makers = {member.parameter for name in chosen for member in groups.groups[name].members}
    normed = all(graph.ops[_number(name)][2].get("bn") for name in makers)
    criteria = ["l1_norm", "l2_norm", "fpgm", "random"] + ["bn_scale"] * (4 * normed)
    return {
        "criterion": str(rng.choice(criteria)),
        "pruned_ratios": {name: float(rng.uniform(0.15, 0.95)) for name in chosen},
        "align": int(rng.choice([1, 1, 1, 2, 4])),
        "seed": graph.seed,
    }


def _number(weight: str) -> int:
    return int("".join(sign for sign in weight if sign.isdigit()))


def _units_removed(units: int, ratio: float, align: int) -> int:
    """The rule in other words: try what could remain, take what comes nearest."""
    remains = min(max(units - int(round(units * ratio)), 1), units)
    if align == 1:
        return units - remains
    multiples = [m for m in range(align, units + align, align)]
    nearest = min(multiples, key=lambda m: (abs(m - remains), -m))
    return units - min(nearest, units)


def _all_held(groups: ModelGroups, name: str) -> bool:
    """Whether a layer of the group holds only some of its units, so that fewer may go."""
    group = groups.groups[name]
    return any(len(set(member.ids.tolist())) < len(group.units) for member in group.members)


def build(graph: Graph) -> RandomNet:
    """The network with the weights of its seed."""
    net = RandomNet(graph.ops)
    fill(net, graph.seed)
    return net


def trace_graph(net: RandomNet, graph: Graph) -> Trace:
    """Its trace at the size of its image."""
    return trace_layer(net, [InputSpec([1, *graph.ops[0][2]["size"]], "float64", "image")])
