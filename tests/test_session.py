"""From a configuration to a model: build, replay, load, cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
import yaml

from slim_det import checkpoint, session
from slim_det.config import SlimConfig, load_config
from slim_det.errors import ConfigError, PlanError
from slim_det.layers import YOLO_HEAD_LAYERS
from slim_det.prune.plan import plan_of, tensor_shapes

TIP = "neck.yolo_block.0.tip.conv.weight"


@pytest.fixture
def cfg(fresh_config: Any, tiny: Path) -> Any:
    return load_config(tiny)


def slim(path: Path, **pruner: Any) -> SlimConfig:
    """Write a slim file and merge it into the configuration."""
    path.write_text(yaml.safe_dump({"slim": "Pruner", "Pruner": pruner}))
    return session.read_slim(str(path))


def stored(stem: Path) -> dict[str, np.ndarray]:
    return paddle.load(f"{stem}.pdparams", return_numpy=True)


def test_names_start_at_zero_every_time(cfg: Any) -> None:
    """Automatic names depend on the order of creation, in this model and not before it."""
    left, right = session.build_model(cfg), session.build_model(cfg)
    names = [p.name for p in left.parameters()]
    assert names == [p.name for p in right.parameters()] and names[0] == "conv2d_0.w_0"
    assert not left.training


@pytest.mark.parametrize(
    ("component", "settings", "said"),
    [
        ("ScaledYOLOv3FPN", {"width": 0.3}, "width 0.3"),
        ("MobileNet", {"feature_maps": [4, 6]}, "the model cannot be built"),
        ("YOLOv3Head", {"anchors": 3}, "the model cannot be built: TypeError"),
    ],
)
def test_settings_that_a_component_refuses(
    cfg: Any, component: str, settings: dict[str, Any], said: str
) -> None:
    cfg[component].update(settings)
    with pytest.raises(ConfigError, match=said):
        session.build_model(cfg)


def test_slim_settings_reach_the_pruner(cfg: Any, tmp_path: Path) -> None:
    found = slim(tmp_path / "s.yml", pruned_ratios=0.25, criterion="fpgm", align=4)
    pruner = session.make_pruner()
    assert found.strategies == ("Pruner",)
    assert (pruner.criterion, pruner.align, pruner.requests) == ("fpgm", 4, [("all", 0.25)])


def test_training_starts_from_pretrained_weights_then_cuts(
    cfg: Any, whole: Path, tmp_path: Path
) -> None:
    """Importance is measured on the weights, and the kept filters are theirs."""
    cfg["pretrain_weights"] = str(whole)
    wanted = slim(tmp_path / "s.yml", pruned_params=["neck.yolo_block.0.tip"], pruned_ratios=0.5)
    model = session.model_for_training(cfg, wanted)
    weight = stored(whole)[TIP]
    kept = np.sort(np.argsort(np.abs(weight).sum(axis=(1, 2, 3)), kind="stable")[128:])
    assert plan_of(model).slices[TIP][0].tolist() == kept.tolist()
    assert np.array_equal(dict(model.named_parameters())[TIP].numpy(), weight[kept])


def test_training_without_weights_or_slim(cfg: Any) -> None:
    model = session.model_for_training(cfg)
    assert plan_of(model) is None and tensor_shapes(model)[TIP] == (256, 128, 3, 3)


@pytest.mark.parametrize("how", ["pretrain", "resume", "weights"])
def test_plan_beside_the_weights_is_enough(cfg: Any, trained: Path, how: str) -> None:
    """Training, resuming and evaluation need no slim file for a cut model."""
    if how == "weights":
        model = session.model_with_weights(cfg, str(trained))
    else:
        cfg["pretrain_weights"] = str(trained) if how == "pretrain" else None
        resume = str(trained) if how == "resume" else None
        model = session.model_for_training(cfg, None, resume)
    assert plan_of(model).to_json() == checkpoint.stored_plan(trained).to_json()
    state = stored(trained)
    for name, param in model.named_parameters():
        assert np.array_equal(param.numpy(), state[name]), name


def test_slim_file_that_says_the_same_is_accepted(cfg: Any, trained: Path, tmp_path: Path) -> None:
    """However it spells the layers; they are not cut twice."""
    ratios = dict(zip(YOLO_HEAD_LAYERS, [0.5] * 6 + [0.7] * 6 + [0.8] * 6))
    same = slim(tmp_path / "s.yml", pruned_ratios=ratios)
    model = session.model_with_weights(cfg, str(trained), same)
    assert tensor_shapes(model)[TIP] == (128, 64, 3, 3)
    cfg["pretrain_weights"] = str(trained)
    again = session.model_for_training(cfg, same)
    assert tensor_shapes(again) == tensor_shapes(model)


@pytest.mark.parametrize(
    "other",
    [
        {"pruned_ratios": dict(zip(YOLO_HEAD_LAYERS, [0.8] * 6 + [0.7] * 6 + [0.5] * 6))},
        {"pruned_ratios": {"neck.yolo_block.*": 0.5}},
        {"pruned_ratios": "r578", "align": 4},
        {"pruned_ratios": "r578", "criterion": "fpgm"},
    ],
)
def test_slim_file_that_says_otherwise_is_refused(
    cfg: Any, trained: Path, tmp_path: Path, other: dict[str, Any]
) -> None:
    """The same ratios on other layers, another criterion, another rounding."""
    wanted = slim(tmp_path / "s.yml", **other)
    with pytest.raises(PlanError, match=r"already cut, with l1_norm, .*s\.yml asks for"):
        session.model_with_weights(cfg, str(trained), wanted)


def test_whole_weights_may_be_cut_for_evaluation(cfg: Any, whole: Path, r578: Path) -> None:
    """To see what the cut alone costs."""
    model = session.model_with_weights(cfg, str(whole), session.read_slim(str(r578)))
    assert len(plan_of(model).groups) == 18


@pytest.mark.parametrize("weights", [None, ""])
def test_no_weights(cfg: Any, weights: str | None) -> None:
    with pytest.raises(ConfigError, match="no weights are given"):
        session.model_with_weights(cfg, weights)


def test_device(cfg: Any) -> None:
    session.set_device(cfg)
    assert paddle.get_device() == "cpu"
    if not paddle.is_compiled_with_cuda():
        with pytest.raises(ConfigError, match="use_gpu=false"):
            session.set_device({"use_gpu": True})
