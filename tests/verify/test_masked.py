"""Verification of a pruned model finds what is wrong with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest

from slim_det.compress.prune.plan import Plan, apply_plan, plan_of
from slim_det.compress.prune.pruner import Pruner
from slim_det.compress.strategy import Context
from slim_det.compress.tensors import set_parameter
from slim_det.graph.trace import trace_detector
from slim_det.training import session
from slim_det.training.config import load_config
from slim_det.verify.masked import (
    _stage,
    compare_with_masked,
    expand_weights,
    head_outputs,
    zero_removed_channels,
)
from tests.support import restored_config

SIZE_HW = (64, 96)
TIP = "neck.yolo_block.0.tip.conv.weight"


@pytest.fixture(scope="module")
def build(tiny: Path, ppdet_registered: None) -> Iterator[Any]:
    """Build the tiny detector, each time with other weights."""
    with restored_config():
        cfg = load_config(tiny)
        yield lambda: session.build_model(cfg)


@pytest.fixture(scope="module")
def plan(build: Any) -> Plan:
    """Prunes head and backbone, depthwise convolutions included."""
    ratios = {"neck.yolo_block.*": 0.5, "backbone.conv1": 0.5, "neck.yolo_transition.0": 0.25}
    return plan_of(Pruner(pruned_ratios=ratios)(build(), Context({}, SIZE_HW)))


def pruned(build: Any, plan: Plan) -> paddle.nn.Layer:
    model = build()
    apply_plan(model, plan)
    return model


def parameters(model: paddle.nn.Layer) -> dict[str, paddle.Tensor]:
    return dict(model.named_parameters())


def test_correctly_pruned_model_passes(build: Any, plan: Plan) -> None:
    """Each output of the head is compared, at values that are not zero."""
    stages = compare_with_masked(pruned(build, plan), build(), plan, SIZE_HW)
    assert [s.name for s in stages] == [f"yolo_head.yolo_output.{i}" for i in range(3)]
    assert all(stage.passed and stage.cosine > 0.999999 for stage in stages)
    assert "[1, 27, 2, 3]" in stages[0].note


def test_wrong_consumer_is_found(build: Any, plan: Plan) -> None:
    """One layer of the second block reads the channels beside those that are kept."""
    name = "neck.yolo_block.1.conv_module.conv1.conv.weight"
    kept = np.sort((plan.slices[name][1] + 1) % plan.tensors[name][1])
    slices = {**plan.slices, name: {**plan.slices[name], 1: kept}}
    wrong = dataclasses.replace(plan, slices=slices)
    stages = compare_with_masked(pruned(build, plan), build(), wrong, SIZE_HW)
    assert [stage.passed for stage in stages] == [True, False, False]


def test_wrong_value_is_found_where_it_matters(build: Any, plan: Plan) -> None:
    """A pruned model that was changed in its last block differs in that block's output only."""
    model, unpruned = pruned(build, plan), build()
    expand_weights(unpruned, model, plan)
    weight = parameters(model)["neck.yolo_block.2.tip.conv.weight"]
    set_parameter(weight, weight.numpy()[:, ::-1])
    trace = trace_detector(unpruned, SIZE_HW)
    zero_removed_channels(unpruned, plan, trace)
    image = np.random.default_rng(0).normal(size=(1, 3, *SIZE_HW)).astype("float32")
    names = [f"yolo_head.yolo_output.{i}" for i in range(3)]
    left, right = (head_outputs(net, names, image) for net in (model, unpruned))
    assert [_stage(n, left[n], right[n]).passed for n in names] == [True, True, False]


def test_expanded_weights_keep_their_places(build: Any, plan: Plan) -> None:
    """Kept channels get the pruned model's values, the others keep their own."""
    model, unpruned = pruned(build, plan), build()
    before = parameters(unpruned)[TIP].numpy().copy()
    expand_weights(unpruned, model, plan)
    after, small = parameters(unpruned)[TIP].numpy(), parameters(model)[TIP].numpy()
    rows, columns = plan.slices[TIP][0], plan.slices[TIP][1]
    assert np.array_equal(after[np.ix_(rows, columns)], small)
    removed = np.setdiff1d(np.arange(len(before)), rows)
    assert np.array_equal(after[removed], before[removed])


def test_zeroed_channels_are_those_that_the_plan_removes(build: Any, plan: Plan) -> None:
    """Filters, scale and shift; the layers that read the channels are unchanged."""
    unpruned = build()
    before = {name: value.numpy().copy() for name, value in parameters(unpruned).items()}
    zero_removed_channels(unpruned, plan, trace_detector(unpruned, SIZE_HW))
    after = {name: value.numpy() for name, value in parameters(unpruned).items()}
    kept = plan.slices[TIP][0]
    removed = np.setdiff1d(np.arange(len(before[TIP])), kept)
    assert len(removed) and not after[TIP][removed].any()
    assert np.array_equal(after[TIP][kept], before[TIP][kept])
    for name in ("weight", "bias"):
        assert not after[f"neck.yolo_block.0.tip.batch_norm.{name}"][removed].any()
    reader = "yolo_head.yolo_output.0.weight"
    assert np.array_equal(after[reader], before[reader])


@pytest.mark.parametrize(
    ("error", "passed"), [(0.0, True), (0.9e-4, True), (1.1e-4, False), (np.nan, False)]
)
def test_limit_of_a_stage(error: float, passed: bool) -> None:
    """Relative to the largest value of the unpruned model's output."""
    unpruned = np.array([[1.0, -10.0]])
    stage = _stage("x", [unpruned + [[error * 10, 0.0]]], [unpruned])
    assert stage.passed is passed
    assert str(stage).startswith("pass" if passed else "FAIL")
    assert stage.as_dict()["name"] == "x"


def test_outputs_of_zeros_are_equal_to_zeros_only() -> None:
    zeros = np.zeros((1, 2))
    assert _stage("x", [zeros], [zeros]).passed and _stage("x", [zeros], [zeros]).cosine == 1.0
    assert not _stage("x", [zeros + 1e-3], [zeros]).passed


@pytest.mark.parametrize("wrong", range(3))
def test_every_scale_of_a_shared_layer_is_compared(wrong: int) -> None:
    """Not only the last one."""
    scales = [np.ones((1, 2, side, side)) for side in (4, 2, 1)]
    pruned = [scale + (0.1 if i == wrong else 0.0) for i, scale in enumerate(scales)]
    stage = _stage("x", pruned, scales)
    assert not stage.passed and _stage("x", scales, scales).passed
    assert stage.note.endswith("[1, 2, 4, 4], [1, 2, 2, 2], [1, 2, 1, 1]")
