"""Budgets of a detector: each one met by the plan that the pruner really makes, or refused."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from slim_det.compress.prune.pruner import Pruner
from slim_det.compress.tensors import fingerprint, tensor_shapes
from slim_det.core.errors import ConfigError, LayerError, PlanError, SensitivityError
from slim_det.detectors.yolov3_head import YOLO_HEAD_LAYERS
from slim_det.planning.budget.costs import TracedModel
from slim_det.planning.budget.options import Limits
from slim_det.planning.budget.plan import check_pruner, ratios_of
from slim_det.planning.budget.prepare import losses_by_group, make_search
from slim_det.planning.budget.search import BudgetSearch, Solution
from slim_det.planning.budget.targets import Target
from slim_det.planning.sensitivity.result import SensitivityResult
from slim_det.report.budget import Provenance, Report
from tests.planning.budget.losses import result_of
from tests.planning.budget.models import traced_model
from tests.support import restored_config

SOURCE = "sensitivity.json"


@pytest.fixture(scope="module")
def traced(tiny: Path, ppdet_registered: None) -> Iterator[TracedModel]:
    with restored_config():
        yield traced_model(tiny)


@pytest.fixture(scope="module")
def head(traced: TracedModel) -> SensitivityResult:
    """Growing losses of the 18 layers of the head, at nine ratios."""
    rng = np.random.default_rng(0)
    losses = {
        name: {r / 10: float(a * (r / 10) ** b) for r in range(1, 10)}
        for name, a, b in zip(YOLO_HEAD_LAYERS, rng.uniform(0.1, 1, 18), rng.uniform(1, 4, 18))
    }
    own = fingerprint(type(traced.model).__name__, tensor_shapes(traced.model))
    return result_of(losses, fingerprint=own)


def search_of(
    traced: TracedModel, result: SensitivityResult, limits: Limits | None = None
) -> BudgetSearch:
    return make_search(traced, result, SOURCE, limits or Limits())


def assert_reproduced(
    traced: TracedModel, search: BudgetSearch, solution: Solution, align: int = 1
) -> None:
    """The ratios, through the text of a YAML file, cut exactly what was solved for."""
    ratios = ratios_of(traced, solution, search.losses, align)
    read = yaml.safe_load(yaml.safe_dump(ratios))
    pruner = Pruner("l1_norm", pruned_ratios=read, align=align)
    check_pruner(traced, solution, pruner)
    plan = pruner.plan(traced.model, traced.trace, traced.groups)
    for name, removed in solution.removed.items():
        cut = name in plan.groups
        assert cut == bool(removed)
        if cut:
            group = plan.groups[name]
            assert group["channels"] - len(group["kept"]) == removed
            assert len(group["kept"]) % align == 0
    assert plan.cost["after"]["macs"] == solution.after["macs"]
    assert plan.cost["after"]["params"] == solution.after["params"]


@pytest.mark.parametrize(("kind", "share"), [("macs", 0.02), ("macs", 0.5), ("params", 0.3)])
def test_budget_is_met_within_a_hundredth(
    traced: TracedModel, head: SensitivityResult, kind: str, share: float
) -> None:
    search = search_of(traced, head)
    solution = search.solve(Target(kind, share))
    reached = 1.0 - solution.after[kind] / solution.before[kind]
    assert share <= reached <= share + 0.01
    assert_reproduced(traced, search, solution)
    rows = solution.rows
    assert 2 <= len(rows) <= 12
    assert all(a.cost < b.cost and a.retained < b.retained for a, b in zip(rows, rows[1:]))
    assert rows[-1].retained == pytest.approx(1.0) and rows[-1].removed == pytest.approx(0.0)
    # the front holds nothing better within the same budget
    inside = [row.retained for row in solution.front if row.removed >= reached]
    assert max(inside) <= solution.retained * (1 + 1e-6)


@pytest.mark.parametrize("align", [4, 8])
def test_aligned_widths(traced: TracedModel, head: SensitivityResult, align: int) -> None:
    search = search_of(traced, head, Limits(align=align))
    by_loss, by_macs = (search.solve(Target(k, x)) for k, x in (("loss", 0.2), ("macs", 0.4)))
    for solution in (by_loss, by_macs):
        assert_reproduced(traced, search, solution, align)
    assert by_macs.after["macs"] <= 0.6 * by_macs.before["macs"]


def test_limits_bound_every_layer(traced: TracedModel, head: SensitivityResult) -> None:
    limits = Limits(max_ratio=0.5, min_channels=40)
    solution = search_of(traced, head, limits).solve(Target("macs", 0.3))
    for name, removed in solution.removed.items():
        units = len(traced.groups.groups[name].units)
        assert removed <= units * 0.5
        assert removed == 0 or units - removed >= 40


def test_insensitive_layers_are_cut_first(traced: TracedModel, head: SensitivityResult) -> None:
    """Two layers of equal shape in a row of equals: only the one that loses nothing is cut."""
    conv1, conv3 = (f"neck.yolo_block.0.conv_module.conv{i}" for i in (1, 3))
    losses = {conv1: {0.5: 0.0, 0.9: 0.0}, conv3: {0.5: 0.5, 0.9: 0.9}}
    result = replace(head, **vars_of(result_of(losses)))
    solution = search_of(traced, result).solve(Target("macs", 0.02))
    assert solution.removed[conv1] > 0 and solution.removed[conv3] == 0
    assert solution.retained == pytest.approx(1.0)


def vars_of(result: SensitivityResult) -> dict[str, object]:
    return {k: getattr(result, k) for k in ("request", "groups", "ap", "sources")}


def test_gains_do_not_cut_more_than_the_target(traced: TracedModel) -> None:
    """Every cut helps, yet 10 % is 10 %, not the most, which would help most."""
    gains = {name: {0.3: -0.02, 0.6: -0.05, 0.9: -0.1} for name in YOLO_HEAD_LAYERS[6:12]}
    search = search_of(traced, result_of(gains))
    solution = search.solve(Target("macs", 0.1))
    assert 0.1 <= 1.0 - solution.after["macs"] / solution.before["macs"] <= 0.11
    assert solution.retained > 1.0
    assert_reproduced(traced, search, solution)


def test_one_layer_reaches_its_budget_by_single_channels(traced: TracedModel) -> None:
    """One measured point, far away; the widths between are interpolated and refined."""
    name = "neck.yolo_block.0.conv_module.conv1"
    search = search_of(traced, result_of({name: {0.9: 0.45}}))
    before = search.solve(Target("macs", 0.001)).before["macs"]
    channel = search.rules["macs"]  # what a single channel of both weights costs
    shapes = tensor_shapes(traced.model)
    weights = [f"neck.yolo_block.0.conv_module.conv{i}.conv.weight" for i in (1, 2)]
    step = sum(channel(w, shapes[w]) for w in weights) / shapes[weights[0]][0]
    solution = search.solve(Target("macs", 0.05))
    over = 0.95 * before - solution.after["macs"]
    assert 0.0 <= over <= max(step, 0.001 * before)
    removed = solution.removed[name]
    units = shapes[weights[0]][0]
    most = round(units * 0.9)
    assert solution.retained == pytest.approx(1.0 - 0.45 * removed / most, rel=1e-9)


def test_loss_rule_for_each_layer(traced: TracedModel) -> None:
    """By hand: half-way between 0.2 and 0.4; below the first measured ratio; all within."""
    one, two, three = YOLO_HEAD_LAYERS[:3]
    losses = {
        one: {0.2: 0.0, 0.4: 0.1},
        two: {0.2: 0.2, 0.4: 0.3},
        three: {0.2: 0.0, 0.4: 0.01},
    }
    search = search_of(traced, result_of(losses))
    solution = search.solve(Target("loss", 0.05))
    units = {n: len(traced.groups.groups[n].units) for n in losses}
    shares = {one: 0.3, two: 0.05, three: 0.4}
    assert solution.removed == {n: int(round(units[n] * s)) for n, s in shares.items()}
    assert_reproduced(traced, search, solution)


def test_budget_that_is_too_small_names_the_nearest(
    traced: TracedModel, head: SensitivityResult
) -> None:
    search = search_of(traced, head)
    with pytest.raises(ConfigError, match="nearest is --macs ") as caught:
        search.solve(Target("macs", 0.95))
    nearest = float(str(caught.value).rsplit(" ", 1)[1])
    solution = search.solve(Target("macs", nearest))
    assert 1.0 - solution.after["macs"] / solution.before["macs"] >= nearest


def test_nothing_to_cut_is_an_error(traced: TracedModel) -> None:
    search = search_of(traced, result_of({YOLO_HEAD_LAYERS[0]: {0.5: 0.9}}))
    with pytest.raises(ConfigError, match="nothing is cut"):
        search.solve(Target("loss", 0.0001))


def test_names_are_settled(traced: TracedModel) -> None:
    """Old parameter names, in any order, come out as groups in execution order."""
    measured = {"yolo_block.0.0.1.conv.weights": {0.1: 0.2}, YOLO_HEAD_LAYERS[0]: {0.1: 0.1}}
    found = losses_by_group(traced, measured, SOURCE)
    assert list(found.items()) == [
        (YOLO_HEAD_LAYERS[0], {0.1: 0.1}),
        (YOLO_HEAD_LAYERS[1], {0.1: 0.2}),
    ]


@pytest.mark.parametrize(
    ("names", "phrase"),
    [
        (["neck.yolo_block.0.tipp"], "unknown layer 'neck.yolo_block.0.tipp'; did you mean"),
        (["yolo_head.yolo_output.0"], "'yolo_head.yolo_output.0' cannot be cut"),
        (["neck.yolo_block.0.*"], "does not name one group of its own"),
        (["neck.yolo_block.0.tip", "neck.yolo_block.0.tip.conv.weight"], "one group of its own"),
    ],
)
def test_wrong_groups(traced: TracedModel, names: list[str], phrase: str) -> None:
    with pytest.raises(LayerError) as caught:
        losses_by_group(traced, {name: {0.1: 0.1} for name in names}, SOURCE)
    assert str(caught.value).startswith(f"'{SOURCE}': ") and phrase in str(caught.value)


def test_losses_of_another_model(traced: TracedModel) -> None:
    result = result_of({YOLO_HEAD_LAYERS[0]: {0.5: 0.1}}, fingerprint="f" * 64)
    with pytest.raises(SensitivityError, match="measured on another model: .* ffffffffffff"):
        search_of(traced, result)


def test_no_losses_at_all(traced: TracedModel) -> None:
    with pytest.raises(SensitivityError, match="holds no losses"):
        search_of(traced, result_of({}))


def test_incomplete_losses_are_used_with_a_warning(
    traced: TracedModel, head: SensitivityResult, caplog: pytest.LogCaptureFixture
) -> None:
    groups = {n: dict(losses) for n, losses in head.groups.items()}
    del groups[YOLO_HEAD_LAYERS[3]]
    with caplog.at_level(logging.WARNING, "slim_det"):
        search = search_of(traced, replace(head, groups=groups, ap={}))
    assert "is not complete" in caplog.text
    assert YOLO_HEAD_LAYERS[3] not in search.solve(Target("macs", 0.2)).removed


def test_a_pruner_that_cuts_otherwise_is_refused(
    traced: TracedModel, head: SensitivityResult
) -> None:
    search = search_of(traced, head)
    solution = search.solve(Target("macs", 0.2))
    ratios = ratios_of(traced, solution, search.losses)
    first = next(iter(ratios))
    ratios[first] = 0.89 if ratios[first] < 0.5 else 0.01
    with pytest.raises(PlanError, match="were solved for"):
        check_pruner(traced, solution, Pruner(pruned_ratios=ratios))


def test_prediction_multiplies_what_every_layer_leaves(
    traced: TracedModel, head: SensitivityResult
) -> None:
    """All within the threshold at a measured ratio, so that every loss is a measured one."""
    losses = {name: {0.5: 0.1} for name in YOLO_HEAD_LAYERS[:3]}
    search = search_of(traced, result_of(losses))
    solution = search.solve(Target("loss", 0.1))
    assert solution.retained == pytest.approx(0.9**3, rel=1e-12)
    ratios = ratios_of(traced, solution, search.losses)
    assert ratios == dict.fromkeys(losses, 0.5)
    source = Provenance("s.json", "a" * 64, "coco_ap", 0.4, "l1_norm")
    figures = Report(Target("loss", 0.1), solution, ratios, 1, source).as_dict()
    assert figures["predicted_ap"] == pytest.approx(0.4 * 0.729, rel=1e-12)
    assert figures["measured_ap"] is None and figures["latency_ms_before"] is None
    unknown = replace(source, baseline=None)
    figures = Report(Target("loss", 0.1), solution, ratios, 1, unknown).as_dict()
    assert figures["predicted_ap"] is None
    assert figures["predicted_loss"] == pytest.approx(0.271, rel=1e-12)
