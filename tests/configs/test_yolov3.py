"""Every shipped YAML loads, builds, and names only what exists."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paddle
import pytest
import yaml
from ppdet.core.workspace import create

from slim_det.compress.distill.fit import check_fit
from slim_det.compress.distill.strategy import Distill
from slim_det.compress.distill.teacher import Teacher
from slim_det.compress.prune.groups import find_groups
from slim_det.compress.prune.pruner import Pruner
from slim_det.compress.prune.requests import select_groups
from slim_det.compress.prune.slimming import scales_of
from slim_det.compress.quantize.quantizable_layers import find_quantizable_layers
from slim_det.core.safe_yaml import read_tree
from slim_det.detectors.image_size import image_size_hw
from slim_det.detectors.layer_finder import LayerFinder
from slim_det.graph.trace import trace_detector
from slim_det.training import session
from slim_det.training.config import load_config, load_slim_config
from slim_det.training.config_scope import fresh_config, plain_copy
from tests.commands import CONFIGS

FILES = sorted(CONFIGS.glob("*.yml"))
SLIM = [path for path in FILES if "slim" in read_tree(path, check_only=True)]
MODELS = [path for path in FILES if path not in SLIM]
PRUNING = [path for path in SLIM if "Pruner" in read_tree(path, check_only=True)]
DISTILLING = [path for path in SLIM if "Distill" in read_tree(path, check_only=True)]
SLIMMING = [path for path in SLIM if "Slim" in read_tree(path, check_only=True)]
QUANTIZING = [path for path in SLIM if {"QAT", "PTQ"} & {*read_tree(path, check_only=True)}]

# YOLOv3-MobileNetV1 at 608 pixels on COCO: MACs and parameters in the published conventions.
PUBLISHED = {
    "prune_r578": (6727971440, 8016992),
    "prune_sensity": (14565975643, 17548482),
}


def name_of(path: Path) -> str:
    return path.stem


@pytest.fixture(scope="module", params=MODELS, ids=name_of)
def built(
    request: pytest.FixtureRequest, ppdet_registered: None
) -> Iterator[tuple[Any, paddle.nn.Layer]]:
    """Each configuration with its model, once for all tests of it."""
    with fresh_config():
        cfg = load_config(request.param)
        yield cfg, session.build_model(cfg)


@pytest.fixture(scope="module")
def mobilenet(ppdet_registered: None) -> Iterator[tuple[Any, paddle.nn.Layer, Any, Any]]:
    """YOLOv3-MobileNetV1 on COCO with its trace and groups."""
    with fresh_config():
        cfg = load_config(CONFIGS / "yolov3_mobilenet_v1_270e_coco.yml")
        model = session.build_model(cfg)
        trace = trace_detector(model, image_size_hw(cfg))
        yield cfg, model, trace, find_groups(model, trace)


def test_both_kinds_are_there() -> None:
    assert len(SLIM) >= 7 and len(MODELS) >= 13
    assert {*PRUNING, *SLIMMING, *DISTILLING, *QUANTIZING} == {*SLIM}
    assert SLIMMING and DISTILLING and QUANTIZING


def test_training_is_set_up(built: tuple[Any, paddle.nn.Layer]) -> None:
    """Learning rate, optimizer over every trainable weight, and the three readers."""
    cfg, model = built
    rate = create("LearningRate")(100)
    assert 0.0 <= rate() <= cfg["LearningRate"]["base_lr"]
    optimizer = create("OptimizerBuilder")(rate, model)
    trained = [p for p in model.parameters() if not p.stop_gradient]
    assert len(optimizer._parameter_list) >= len(trained) > 50
    for reader in ("TrainReader", "EvalReader", "TestReader"):
        assert create(reader).batch_size >= 1
    milestones = cfg["LearningRate"]["schedulers"][0].get("milestones", [cfg.epoch])
    assert max(milestones) <= cfg.epoch and cfg.snapshot_epoch <= cfg.epoch


def test_head_and_reader_agree_on_anchors(built: tuple[Any, paddle.nn.Layer]) -> None:
    """ppdet keeps the list twice, and trains on whatever the reader says."""
    cfg, _ = built
    head = cfg["YOLOv3Head"]
    target = next(
        step["Gt2YoloTarget"]
        for step in cfg["TrainReader"]["batch_transforms"]
        if "Gt2YoloTarget" in step
    )
    for key in ("anchors", "anchor_masks"):
        assert target[key] == head[key]
    assert target["downsample_ratios"] == cfg["YOLOv3Loss"]["downsample"]


def test_image_size_is_the_same_everywhere(built: tuple[Any, paddle.nn.Layer]) -> None:
    cfg, _ = built
    for reader in ("EvalReader", "TestReader"):
        steps = cfg[reader]["sample_transforms"]
        size = next(step["Resize"]["target_size"] for step in steps if "Resize" in step)
        assert tuple(size) == image_size_hw(cfg)


def test_weights_are_where_training_puts_them(built: tuple[Any, paddle.nn.Layer]) -> None:
    """Or, for blood cells, beside the data, so that every command works before any training."""
    cfg, _ = built
    if "bccd" in cfg.filename:
        assert cfg.weights == cfg.pretrain_weights
    else:
        assert cfg.weights == f"{cfg.save_dir}/{cfg.filename}/model_final"


@pytest.mark.parametrize("slim", PRUNING, ids=name_of)
def test_slim_file_names_layers_that_exist(built: tuple[Any, paddle.nn.Layer], slim: Path) -> None:
    """Of every backbone."""
    _, model = built
    settings = load_slim_config(slim).settings
    finder = LayerFinder(model)
    requests = Pruner(**settings["Pruner"]).requests
    assert requests
    for spelling, _ in requests:
        assert spelling == "all" or len(finder.find(spelling)) == 1


@pytest.mark.parametrize("slim", PRUNING, ids=name_of)
def test_slim_file_cuts_what_can_be_cut(mobilenet: tuple, slim: Path) -> None:
    """Each layer it names is the first of a group that can be cut."""
    _, model, trace, groups = mobilenet
    pruner = Pruner(**yaml.safe_load(slim.read_text())["Pruner"])
    ratios = select_groups(pruner.requests, LayerFinder(model), groups)
    assert len(ratios) >= 18
    if slim.stem in PUBLISHED:
        cost = pruner.plan(model, trace, groups).cost["after"]
        assert (cost["macs"], cost["params"]) == PUBLISHED[slim.stem]


@pytest.mark.parametrize("slim", SLIMMING, ids=name_of)
def test_slim_file_penalizes_the_head(mobilenet: tuple, slim: Path) -> None:
    """The scales behind its 18 layers, with a weight above 0."""
    _, model, _, groups = mobilenet
    with fresh_config():
        session.read_slim(str(slim))
        strategy = create("Slim")
    scales = scales_of(model, groups, strategy.layers)
    assert len(scales) == 18 and strategy.sparsity > 0.0
    assert all(name.startswith("neck.yolo_block.") for name in scales)


@pytest.mark.parametrize("slim", DISTILLING, ids=name_of)
def test_teacher_of_a_slim_file_can_be_built(slim: Path, ppdet_registered: None) -> None:
    """Its configuration is a shipped one; its outputs and images are those of the student."""
    student = "yolov3_mobilenet_v1_" + ("bccd.yml" if "bccd" in slim.stem else "270e_coco.yml")
    with fresh_config():
        cfg = load_config(CONFIGS / student)
        model = session.build_model(cfg)
        settings = session.read_slim(str(slim)).settings["Distill"]
        teacher_file = CONFIGS.parent.parent / settings["teacher"]["config"]
        assert Distill(**settings).terms
        with fresh_config():
            teacher_cfg = plain_copy(load_config(teacher_file))
            teacher = session.build_model(load_config(teacher_file))
        check_fit(model, cfg, Teacher(teacher, teacher_cfg))


@pytest.mark.parametrize("slim", QUANTIZING, ids=name_of)
def test_slim_file_quantizes_all_but_the_outputs(mobilenet: tuple, slim: Path) -> None:
    """Its settings are valid, and leave 47 of 50 convolutions."""
    _, model, trace, _ = mobilenet
    with fresh_config():
        found = session.read_slim(str(slim))
        strategy = create(next(name for name in ("QAT", "PTQ") if name in found.strategies))
    sites = find_quantizable_layers(model, trace, strategy.settings)
    assert len(sites.layers) == 47
    assert [*sites.kept_float] == [f"yolo_head.yolo_output.{scale}" for scale in range(3)]
