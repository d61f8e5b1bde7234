"""Every kind of BlazeFace: which channels are pruned together, and that pruning is exact."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import paddle
import pytest

from slim_det.compress.prune.groups import ModelGroups, find_groups
from slim_det.compress.prune.plan import plan_of
from slim_det.compress.prune.pruner import Pruner
from slim_det.compress.strategy import Context
from slim_det.graph.trace import Trace, trace_detector
from slim_det.training import session
from slim_det.training.config import load_config
from slim_det.verify.masked import (
    compare_with_masked,
    expand_weights,
    head_outputs,
    zero_removed_channels,
)
from tests.blazeface import VARIANTS, write_blazeface
from tests.support import restored_config

SIZE_HW = (80, 112)  # odd at stride 16: the shortcut's maximum is taken of halves
HEADS = [f"blaze_head.{name}{scale}" for scale in range(2) for name in ("boxes", "scores")]


@pytest.fixture(scope="module", params=VARIANTS)
def build(
    request: Any, tmp_path_factory: pytest.TempPathFactory, ppdet_registered: None
) -> Iterator[Any]:
    """Build a detector of one kind, each time with other weights."""
    folder = tmp_path_factory.mktemp("blazeface")
    path = write_blazeface(folder / "tiny.yml", folder, request.param)
    with restored_config():
        cfg = load_config(path)
        yield lambda: session.build_model(cfg)


@pytest.fixture(scope="module")
def unpruned(build: Any) -> tuple[paddle.nn.Layer, Trace, ModelGroups]:
    """An unpruned model, and its groups."""
    model = build()
    trace = trace_detector(model, SIZE_HW)
    return model, trace, find_groups(model, trace)


def test_everything_but_the_head_can_be_cut(unpruned: Any) -> None:
    """Anchors depend on the size of a feature map and not on its channels."""
    model, trace, groups = unpruned
    assert [name for name, group in groups.groups.items() if not group.prunable] == HEADS
    run = {trace.parameters[op.input("Filter")] for op in trace.ops if "conv2d" in op.type}
    assert run == {name for name, p in model.named_parameters() if p.ndim == 4}
    # A depthwise one makes no channels: it follows the one group that it reads.
    assert run == set(groups.member_of) | set(groups.depthwise)
    assert all(len(groups.followers[name]) == 1 for name in groups.depthwise)


def test_pruned_is_the_masked_model_in_float64(build: Any, unpruned: Any) -> None:
    """30 % of every group, in double precision, up to the raw outputs of the head."""
    masked, trace, groups = unpruned
    pruned = build()
    plan = plan_of(Pruner(pruned_ratios=0.3)(pruned, Context({}, SIZE_HW)))
    assert set(plan.groups) == {name for name, g in groups.groups.items() if g.prunable}
    _make_norms_matter(pruned)
    expand_weights(masked, pruned, plan)
    zero_removed_channels(masked, plan, trace)
    image = np.random.default_rng(1).normal(size=(1, 3, *SIZE_HW))
    left, right = (_in_float64(model, image) for model in (pruned, masked))
    for name in HEADS:
        assert left[name].dtype == np.float64 and left[name].std() > 0
        scale = np.abs(right[name]).max()
        assert np.abs(left[name] - right[name]).max() <= 1e-9 * scale, name


@pytest.mark.parametrize("build", ["fpn_ssh"], indirect=True)
def test_proof_of_a_pruning(build: Any) -> None:
    """What `verify` runs compares each output of the head, boxes before scores."""
    pruned = build()
    plan = plan_of(Pruner(pruned_ratios=0.3)(pruned, Context({}, SIZE_HW)))
    stages = compare_with_masked(pruned, build(), plan, SIZE_HW)
    assert [stage.name for stage in stages] == HEADS
    assert all(stage.passed for stage in stages)


def _make_norms_matter(model: paddle.nn.Layer) -> None:
    """Give batch norm statistics and shifts, so that a zeroed channel is not zero by chance."""
    rng = np.random.default_rng(0)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            value = rng.uniform(0.5, 1.5, parameter.shape)
            if name.endswith(("bias", "_mean")):
                value -= 1.0
            parameter.set_value(value.astype("float32"))


def _in_float64(model: paddle.nn.Layer, image: np.ndarray) -> dict[str, np.ndarray]:
    """Outputs of the head in double precision; boxes, whose operators have none, are left out."""
    model.to(dtype="float64")
    model.post_process = lambda *_: (paddle.zeros([1, 6]), paddle.ones([1], "int32"), None)
    model.blaze_head.anchor_generator = lambda *_: []
    outputs = head_outputs(model, HEADS, image)
    return {name: output for name, (output,) in outputs.items()}
