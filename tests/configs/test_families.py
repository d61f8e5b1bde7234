"""A configuration of every family of detectors can be built, inspected, pruned and verified.

The commands themselves, with data, are tried by `test_families_trained.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle
import pytest
from ppdet.core.workspace import create

from slim_det.compress.prune.groups import ModelGroups, find_groups
from slim_det.compress.prune.plan import apply_plan
from slim_det.compress.prune.pruner import Pruner
from slim_det.detectors.image_size import image_size_hw
from slim_det.graph.trace import Trace, trace_detector
from slim_det.report.inspection import inspection_of
from slim_det.training import session
from slim_det.training.config import load_config
from slim_det.training.config_scope import fresh_config
from slim_det.verify.masked import compare_with_masked, head_outputs
from tests.configs.families import FILES, name_of, noise, settle

SIZE_HW = (128, 128)

PRUNABLE = {
    "cascade_rcnn_r18_fpn": 0.99,
    "centernet_mobilenet_v3": 0.99,
    "faster_rcnn_r18_fpn": 0.99,
    "fcos_r18_fpn": 0.99,
    "gfl_r18_fpn": 0.97,
    "mask_rcnn_r18_fpn": 0.99,
    "picodet_s_bccd": 0.97,
    "picodet_s_esnet": 0.72,  # the other channels are shuffled
    "ppyolo_mobilenet_v3": 0.99,
    "ppyolo_r18vd_dcn": 0.99,
    "ppyolo_tiny": 0.97,
    "ppyoloe_plus_s_bccd": 0.91,
    "ppyoloe_s": 0.91,
    "ppyolov2_r18vd_dcn": 0.99,
    "retinanet_r18_fpn": 0.98,
    "ssd_mobilenet_v1": 0.98,
    "ssdlite_mobilenet_v1": 0.98,
    "tood_r18_fpn": 0.93,
    "ttfnet_r18": 0.98,
    "yolof_r18": 0.99,
    "yolox_nano": 0.99,
}
"""Least share of the MACs in groups that can be pruned, at the configuration's image size."""

REACHABLE = 0.96
"""Least share of the MACs in these groups and the layers that read them, of all families."""


@dataclass(frozen=True)
class Built:
    """A detector of a configuration, with random weights, and its trace at its image size."""

    cfg: Any
    name: str
    model: paddle.nn.Layer
    trace: Trace
    groups: ModelGroups


@pytest.fixture(scope="module", params=FILES, ids=name_of)
def built(request: pytest.FixtureRequest, ppdet_registered: None) -> Iterator[Built]:
    """Each configuration with its model, once for all tests of it."""
    with fresh_config():
        cfg = load_config(request.param)
        cfg["eval_size"] = None  # it would be that of anchors which are computed once
        paddle.seed(0)
        model = session.build_model(cfg)
        settle(model, SIZE_HW)
        trace = trace_detector(model, image_size_hw(cfg))
        yield Built(cfg, request.param.stem, model, trace, find_groups(model, trace))


def test_every_family_is_there() -> None:
    assert sorted(map(name_of, FILES)) == sorted(PRUNABLE)


def test_training_is_set_up(built: Built) -> None:
    """Learning rate, optimizer over every weight, and three readers of one image size."""
    cfg = built.cfg
    assert 0.0 < create("LearningRate")(100)() <= cfg["LearningRate"]["base_lr"]
    optimizer = create("OptimizerBuilder")(create("LearningRate")(100), built.model)
    fixed = [name for name, param in built.model.named_parameters() if param.stop_gradient]
    assert all(name.endswith(("._mean", "._variance", ".proj_conv.weight")) for name in fixed)
    assert len(optimizer._parameter_list) == len([*built.model.parameters()]) - len(fixed)
    sizes = {image_size_hw(cfg)}
    for reader in ("TrainReader", "EvalReader", "TestReader"):
        assert create(reader).batch_size >= 1
        steps = cfg[reader]["sample_transforms"]
        sizes |= {tuple(step["Resize"]["target_size"]) for step in steps if "Resize" in step}
    assert len(sizes) == 1
    assert cfg.weights == f"{cfg.save_dir}/{built.name}/model_final"
    assert cfg.snapshot_epoch <= cfg.epoch == cfg["LearningRate"]["schedulers"][0]["max_epochs"]


def test_most_of_it_can_be_pruned(built: Built) -> None:
    size_hw = image_size_hw(built.cfg)
    found = inspection_of(built.model, built.trace, built.groups, size_hw)
    assert found.macs_prunable >= PRUNABLE[built.name] * found.before.macs
    assert found.macs_reachable >= REACHABLE * found.before.macs
    assert all(group.prunable or group.reason for group in found.groups)


def test_pruned_by_half_it_is_the_masked_model(built: Built) -> None:
    """All groups that can be pruned lose half of their channels, and so three quarters of the MACs.

    This is the last test of a model, because it changes it.
    """
    pruner = Pruner(pruned_params="all", pruned_ratios=0.5, criterion="l1_norm")
    plan = pruner.plan(built.model, built.trace, built.groups)
    apply_plan(built.model, plan)
    assert sum(param.size for param in built.model.parameters()) == plan.cost["after"]["params"]
    assert len(plan.groups) == sum(group.prunable for group in built.groups.groups.values()) > 15
    assert 0.24 <= plan.cost["after"]["macs"] / plan.cost["before"]["macs"] <= 0.41

    unpruned = session.build_model(built.cfg)
    stages = compare_with_masked(built.model, unpruned, plan, SIZE_HW)
    assert stages and all(stage.passed for stage in stages), stages
    # They are not equal because nothing reaches them.
    names, image = [stage.name for stage in stages], noise(SIZE_HW)["image"].numpy()
    for name, (output, *_) in head_outputs(built.model, names, image).items():
        places = np.moveaxis(output, 1, 0).reshape(output.shape[1], -1)
        assert places.shape[1] == 1 or np.ptp(places, axis=1).max() > 1e-6, name
