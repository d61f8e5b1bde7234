"""From a configuration to a model: build, replay, load, cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
import yaml
from ppdet.core.workspace import create

from slim_det.compress.prune.plan import Plan, plan_of
from slim_det.compress.strategy import Context
from slim_det.compress.tensors import tensor_shapes
from slim_det.core.errors import ConfigError, PlanError
from slim_det.detectors.yolov3_head import YOLO_HEAD_LAYERS
from slim_det.training import checkpoint, session
from slim_det.training.config import SlimConfig, apply_overrides, load_config
from slim_det.training.config_scope import plain_copy

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
        (
            "ScaledYOLOv3FPN",
            {"norm_type": "abc"},
            "the model cannot be built: UnboundLocalError: .*norm_layer",
        ),
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
    pruner = create("Pruner")
    assert found.strategies == ("Pruner",)
    assert (pruner.criterion, pruner.align, pruner.requests) == ("fpgm", 4, [("all", 0.25)])


def test_training_starts_from_pretrained_weights_then_cuts(
    cfg: Any, unpruned: Path, tmp_path: Path
) -> None:
    """Importance is measured on the weights, and the kept filters are theirs."""
    cfg["pretrain_weights"] = str(unpruned)
    wanted = slim(tmp_path / "s.yml", pruned_params=["neck.yolo_block.0.tip"], pruned_ratios=0.5)
    model = session.model_for_training(cfg, wanted)
    weight = stored(unpruned)[TIP]
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
    assert plan_of(model).to_json() == checkpoint.stored_step(trained, Plan).to_json()
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
        {"pruned_ratios": "r578", "criterion": "bn_scale", "share_of": "energy"},
    ],
)
def test_slim_file_that_says_otherwise_is_refused(
    cfg: Any, trained: Path, tmp_path: Path, other: dict[str, Any]
) -> None:
    """The same ratios on other layers, another criterion, another rounding."""
    wanted = slim(tmp_path / "s.yml", **other)
    with pytest.raises(PlanError, match=r"already cut, with l1_norm, .*s\.yml asks for"):
        session.model_with_weights(cfg, str(trained), wanted)


def test_unpruned_weights_may_be_pruned_for_evaluation(
    cfg: Any, unpruned: Path, r578: Path
) -> None:
    """To see what the cut alone costs."""
    model = session.model_with_weights(cfg, str(unpruned), session.read_slim(str(r578)))
    assert len(plan_of(model).groups) == 18


@pytest.mark.parametrize("weights", [None, ""])
def test_no_weights(cfg: Any, weights: str | None) -> None:
    with pytest.raises(ConfigError, match="no weights are given"):
        session.model_with_weights(cfg, weights)


class Attached:
    """Stands for `Distill`: notes what it was applied to."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, tuple[int, int], dict[str, Any]]] = []

    def __call__(self, model: Any, context: Context) -> Any:
        self.calls.append((model, context.image_size_hw, tensor_shapes(model)))
        return model


@pytest.fixture
def distill(monkeypatch: pytest.MonkeyPatch) -> Attached:
    attached, create = Attached(), session.create
    monkeypatch.setattr(
        session, "create", lambda name: attached if name == "Distill" else create(name)
    )
    return attached


def distilling(path: Path, *strategies: str, **content: Any) -> SlimConfig:
    """Merge a slim file that distils from a teacher that is nowhere."""
    teacher = {"config": "none.yml", "weights": "none"}
    ratios = {"Pruner": {"pruned_ratios": "r578"}} if "Pruner" in strategies else {}
    content = {"slim": list(strategies), "Distill": {"teacher": teacher}, **ratios, **content}
    path.write_text(yaml.safe_dump(content))
    return session.read_slim(str(path))


def test_training_applies_the_whole_chain(
    cfg: Any, unpruned: Path, tmp_path: Path, distill: Attached
) -> None:
    """The student is cut with its weights in it, and then distilled."""
    cfg["pretrain_weights"] = str(unpruned)
    model = session.model_for_training(
        cfg, distilling(tmp_path / "s.yml", "Pruner", "Distill"), None
    )
    ((student, size, shapes),) = distill.calls
    assert student is model and size == (96, 96)
    assert shapes[TIP] == (128, 64, 3, 3) and plan_of(model) is not None


@pytest.mark.parametrize(
    ("how", "strategies"), [("pretrain", ("Distill",)), ("resume", ("Pruner", "Distill"))]
)
def test_pruned_student_is_distilled_further(
    cfg: Any,
    trained: Path,
    tmp_path: Path,
    distill: Attached,
    how: str,
    strategies: tuple[str, ...],
) -> None:
    """The plan of the weights wins, nothing is cut twice, and the teacher is there again."""
    cfg["pretrain_weights"] = str(trained) if how == "pretrain" else None
    slim = distilling(tmp_path / "s.yml", *strategies)
    model = session.model_for_training(cfg, slim, str(trained) if how == "resume" else None)
    assert [call[0] for call in distill.calls] == [model]
    assert plan_of(model).to_json() == checkpoint.stored_step(trained, Plan).to_json()
    assert slim.strategies == strategies


def test_distilling_does_not_excuse_another_cut(
    cfg: Any, trained: Path, tmp_path: Path, distill: Attached
) -> None:
    cfg["pretrain_weights"] = str(trained)
    other = distilling(tmp_path / "s.yml", "Pruner", "Distill", Pruner={"pruned_ratios": 0.5})
    with pytest.raises(PlanError, match="already cut"):
        session.model_for_training(cfg, other)
    assert not distill.calls


@pytest.mark.parametrize("strategies", [("Distill",), ("Pruner", "Distill")])
def test_no_teacher_where_nothing_is_trained(
    cfg: Any, unpruned: Path, tmp_path: Path, distill: Attached, strategies: tuple[str, ...]
) -> None:
    """Evaluation, inference and export need only what changes the structure."""
    slim = distilling(tmp_path / "s.yml", *strategies)
    model = session.model_with_weights(cfg, str(unpruned), slim)
    assert (plan_of(model) is not None) == ("Pruner" in strategies)
    assert not distill.calls


def test_pruned_student_is_evaluated_with_the_file_that_distilled_it(
    cfg: Any, trained: Path, tmp_path: Path, distill: Attached
) -> None:
    slim = distilling(tmp_path / "s.yml", "Distill")
    assert len(plan_of(session.model_with_weights(cfg, str(trained), slim)).groups) == 18
    assert not distill.calls


def test_historical_teacher_is_not_merged_into_the_student(
    cfg: Any, tiny: Path, tmp_path: Path, unpruned: Path, distill: Attached
) -> None:
    """Its settings stay below `Distill.teacher`, and `-o` can still change where they lead."""
    before = plain_copy(cfg)
    base = {"_BASE_": [str(tiny)], "pretrain_weights": "no/such", "num_classes": 9, "epoch": 99}
    path = tmp_path / "s.yml"
    path.write_text(yaml.safe_dump({**base, "slim": "Distill", "MobileNet": {"scale": 2}}))
    slim = session.read_slim(str(path))
    after = plain_copy(cfg)
    teacher = after.pop("Distill")["teacher"]
    before.pop("Distill", None)
    assert after == before
    assert teacher["weights"] == "no/such" and teacher["tree"]["num_classes"] == 9
    apply_overrides([f"Distill.teacher.weights={unpruned}"])
    assert cfg["Distill"]["teacher"]["weights"] == str(unpruned)
    assert cfg["Distill"]["teacher"]["tree"]["MobileNet"]["scale"] == 2
    session.model_for_training(cfg, slim)
    assert len(distill.calls) == 1


def test_device(cfg: Any) -> None:
    session.set_device(cfg)
    assert paddle.get_device() == "cpu"
    if not paddle.is_compiled_with_cuda():
        with pytest.raises(ConfigError, match="use_gpu=false"):
            session.set_device({"use_gpu": True})
