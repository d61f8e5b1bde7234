"""Every BlazeFace YAML loads, builds, reads faces, and has one normalisation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from ppdet.core.workspace import create

from slim_det.compress.prune.groups import find_groups
from slim_det.compress.prune.requests import select_groups
from slim_det.compress.quantize.quantizable_layers import find_quantizable_layers
from slim_det.core.safe_yaml import read_tree
from slim_det.detectors.image_size import image_size_hw
from slim_det.detectors.layer_finder import LayerFinder
from slim_det.graph.trace import trace_detector
from slim_det.training import session
from slim_det.training.config import load_config
from slim_det.training.config_scope import fresh_config
from tests.support import CONFIGS, ROOT

FOLDER = CONFIGS / "blazeface"
FILES = sorted(FOLDER.glob("*.yml"))
SLIM = [path for path in FILES if "slim" in read_tree(path, check_only=True)]
MODELS = [path for path in FILES if path not in SLIM]
FACES = [path for path in MODELS if path.stem.endswith("_faces")]

NORMALIZE = {"mean": [123, 117, 104], "std": [127.502231] * 3, "is_scale": False}

# Convolutions beside the four of the head, which stay in float.
CONVOLUTIONS = {"blazeface_faces": 38, "blazeface_fpn_ssh_faces": 51, "blazeface_lite_faces": 44}


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


@pytest.fixture(scope="module", params=CONVOLUTIONS)
def traced(request: pytest.FixtureRequest, ppdet_registered: None) -> Iterator[tuple]:
    """A model of each kind with its trace."""
    with fresh_config():
        cfg = load_config(FOLDER / f"{request.param}.yml")
        model = session.build_model(cfg)
        yield model, trace_detector(model, image_size_hw(cfg)), CONVOLUTIONS[request.param]


def steps_of(cfg: Any, reader: str, name: str) -> list[dict[str, Any]]:
    """Settings of every transform of this name."""
    listed = [cfg[reader].get(key) or [] for key in ("sample_transforms", "batch_transforms")]
    return [step[name] for steps in listed for step in steps if name in step]


def test_every_kind_is_there() -> None:
    assert len(MODELS) == 11 and len(FACES) == 5 and len(SLIM) == 5


def test_neck_and_backbone_agree(built: tuple[Any, paddle.nn.Layer]) -> None:
    """ppdet's neck does not ask the backbone; the head asks the neck."""
    cfg, model = built
    found = [shape.channels for shape in model.backbone.out_shape]
    assert cfg["BlazeNeck"]["in_channel"] == found
    if cfg["BlazeNeck"]["neck_type"] == "None":
        assert model.blaze_head.in_channels == found
    assert cfg["AnchorGeneratorSSD"]["steps"] == [s.stride for s in model.backbone.out_shape]
    assert model.blaze_head.num_classes == 2


def test_the_three_readers_normalise_alike(built: tuple[Any, paddle.nn.Layer]) -> None:
    cfg, _ = built
    for reader in ("TrainReader", "EvalReader", "TestReader"):
        assert steps_of(cfg, reader, "NormalizeImage") == [NORMALIZE]


def test_sizes_agree(built: tuple[Any, paddle.nn.Layer]) -> None:
    """A crop is resized to what the network reads; deployment has one size."""
    cfg, _ = built
    (crop,) = steps_of(cfg, "TrainReader", "CropWithDataAchorSampling")
    (size,) = steps_of(cfg, "TrainReader", "Resize")
    assert size["target_size"] == [crop["target_size"]] * 2
    (size,) = steps_of(cfg, "TestReader", "Resize")
    assert tuple(size["target_size"]) == image_size_hw(cfg)
    evaluated = [tuple(step["target_size"]) for step in steps_of(cfg, "EvalReader", "Resize")]
    assert evaluated == ([image_size_hw(cfg)] if "faces" in cfg.filename else [])
    assert evaluated or cfg["EvalReader"]["batch_size"] == 1


def test_training_is_set_up(built: tuple[Any, paddle.nn.Layer]) -> None:
    cfg, model = built
    rate = create("LearningRate")(100)
    assert 0.0 < rate() <= cfg["LearningRate"]["base_lr"]
    optimizer = create("OptimizerBuilder")(rate, model)
    trained = [p for p in model.parameters() if not p.stop_gradient]
    assert len(optimizer._parameter_list) >= len(trained) > 50
    first = cfg["LearningRate"]["schedulers"][0]
    ends = first.get("milestones") or [first["max_epochs"]]
    assert max(ends) <= cfg.epoch and cfg.snapshot_epoch <= cfg.epoch
    assert cfg.weights == f"{cfg.save_dir}/{cfg.filename}/model_final"


@pytest.mark.parametrize("slim", SLIM, ids=name_of)
def test_slim_file_fits(traced: tuple, slim: Path) -> None:
    """It cuts every group but the head's outputs, or quantizes every convolution but those."""
    model, trace, convolutions = traced
    with fresh_config():
        found = session.read_slim(str(slim))
        (name,) = found.strategies
        strategy = create(name)
    if name == "Pruner":
        groups = find_groups(model, trace)
        ratios = select_groups(strategy.requests, LayerFinder(model), groups)
        assert {*ratios.values()} == {0.3}
        assert len(ratios) == len(groups.groups) - 4
        return
    sites = find_quantizable_layers(model, trace, strategy.settings)
    assert len(sites.layers) == convolutions
    assert sorted(sites.kept_float) == [
        f"blaze_head.{kind}{i}" for kind in ("boxes", "scores") for i in (0, 1)
    ]


@pytest.fixture
def faces(shared: Path) -> Path:
    """The data set of faces, in the layout of WIDER FACE."""
    folder = shared / "data" / "faces"
    if not (folder / "wider_face_split").is_dir():
        pytest.skip(f"needs ../{folder.relative_to(ROOT.parent)}, which is not there")
    return folder


@pytest.fixture
def on_faces(faces: Path, ppdet_registered: None, monkeypatch: Any) -> Iterator[Any]:
    """The configuration for them, read from the project's root."""
    monkeypatch.chdir(ROOT)
    with fresh_config():
        yield load_config(FOLDER / "blazeface_faces.yml")


def test_a_training_batch_of_faces(on_faces: Any) -> None:
    cfg = on_faces
    dataset = create("TrainDataset")()
    batch = next(iter(create("TrainReader")(dataset, 0)))
    assert len(dataset) == 683
    side = steps_of(cfg, "TrainReader", "Resize")[0]["target_size"][0]
    assert batch["image"].shape == [8, 3, side, side] and batch["gt_bbox"].shape == [8, 90, 4]
    boxes = batch["gt_bbox"].numpy()
    used = boxes[boxes.any(axis=2)]
    assert len(used) >= 8 and used.min() >= 0 and used.max() <= 1
    assert (used[:, 2:] > used[:, :2]).all() and not batch["gt_class"].numpy().any()


def test_an_evaluation_batch_of_faces(on_faces: Any) -> None:
    evaluated = create("EvalDataset")()
    sampler = paddle.io.BatchSampler(evaluated, batch_size=8)
    batch = next(iter(create("EvalReader")(evaluated, 0, sampler)))
    assert len(evaluated) == 85 and batch["image"].shape == [8, 3, 320, 320]
    assert {"im_id", "im_shape", "scale_factor"} <= {*batch}
    np.testing.assert_array_equal(batch["im_id"].numpy().ravel(), range(8))
    pixels = batch["image"].numpy() * 127.502231 + np.reshape([123, 117, 104], [3, 1, 1])
    assert -0.01 < pixels.min() < 10 and 245 < pixels.max() < 255.01
