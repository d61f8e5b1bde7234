"""A teacher beside a student: its own configuration and weights, and no trace of them elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
import yaml

from slim_det.compress.distill.teacher import build_teacher
from slim_det.compress.prune.plan import plan_of
from slim_det.compress.tensors import tensor_shapes
from slim_det.core.errors import ConfigError, PlanError, SlimDetError, WeightsError
from slim_det.core.safe_yaml import read_tree
from slim_det.training import session
from slim_det.training.config import load_config
from slim_det.training.config_scope import plain_copy
from slim_det.training.session import load_detector

STUDENT = ["MobileNet.scale=0.5", "num_classes=7", "norm_type=bn", "YOLOv3Head.anchor_masks=[[0]]"]


@pytest.fixture
def cfg(fresh_config: Any, tiny: Path) -> Any:
    """The student's configuration: not the teacher's in many ways."""
    return load_config(tiny, STUDENT)


def stored(stem: Path) -> dict[str, np.ndarray]:
    return paddle.load(f"{stem}.pdparams", return_numpy=True)


def write(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(content))
    return path


def refused(kind: type[SlimDetError], spec: Any) -> str:
    with pytest.raises(kind) as caught:
        build_teacher(spec, load_detector)
    line = str(caught.value)
    assert "\n" not in line
    return line


@pytest.mark.parametrize("form", ["config", "tree"])
def test_built_from_its_own_file(cfg: Any, tiny: Path, unpruned: Path, form: str) -> None:
    """Not on top of the student's settings; with exactly the tensors of its weights."""
    source = {"config": str(tiny)} if form == "config" else {"tree": read_tree(tiny)}
    teacher = build_teacher({**source, "weights": str(unpruned)}, load_detector)
    state = stored(unpruned)
    found = {name: p.numpy() for name, p in teacher.model.named_parameters()}
    assert found.keys() == state.keys()
    assert all(np.array_equal(found[name], state[name]) for name in state)
    assert teacher.cfg["num_classes"] == 4 and teacher.cfg["MobileNet"]["scale"] == 0.25
    assert teacher.cfg["YOLOv3Head"]["anchor_masks"] == [[6, 7, 8], [3, 4, 5], [0, 1, 2]]


def test_frozen(cfg: Any, tiny: Path, unpruned: Path) -> None:
    model = build_teacher({"config": str(tiny), "weights": str(unpruned)}, load_detector).model
    assert not any(layer.training for layer in model.sublayers(include_self=True))
    assert all(parameter.stop_gradient for parameter in model.parameters())


def test_pruned_detector_may_teach(cfg: Any, tiny: Path, trained: Path) -> None:
    """The plan beside its weights is replayed."""
    model = build_teacher(
        {"config": str(tiny), "weights": f"{trained}.pdparams"}, load_detector
    ).model
    assert len(plan_of(model).groups) == 18
    assert tensor_shapes(model) == {name: v.shape for name, v in stored(trained).items()}


@pytest.mark.parametrize("weights", ["unpruned", "none"])
def test_student_is_left_alone(cfg: Any, tiny: Path, unpruned: Path, weights: str) -> None:
    """Whether it succeeds or not: values, file name, components, and what is drawn next."""
    before, objects = plain_copy(cfg), list(map(id, cfg.values()))
    paddle.seed(3)
    expected = paddle.rand([4]).numpy()
    paddle.seed(3)
    spec = {
        "config": str(tiny),
        "weights": str(tiny / "none" if weights == "none" else unpruned),
    }
    if weights == "unpruned":
        build_teacher(spec, load_detector)
    else:
        refused(WeightsError, spec)
    assert np.array_equal(paddle.rand([4]).numpy(), expected)
    assert plain_copy(cfg) == before and list(map(id, cfg.values())) == objects
    assert cfg.filename == "tiny" and cfg.num_classes == 7
    assert session.build_model(cfg).yolo_head.num_classes == 7


def test_spec_is_left_alone(cfg: Any, tiny: Path, unpruned: Path) -> None:
    tree = read_tree(tiny)
    spec = {"tree": tree, "weights": str(unpruned)}
    teacher = build_teacher(spec, load_detector)
    teacher.cfg["MobileNet"]["scale"] = 9
    assert tree == read_tree(tiny) and spec == {"tree": tree, "weights": str(unpruned)}


def test_later_changes_do_not_reach_it(cfg: Any, tiny: Path, unpruned: Path) -> None:
    teacher = build_teacher({"config": str(tiny), "weights": str(unpruned)}, load_detector)
    before = plain_copy(teacher.cfg)
    load_config(tiny, ["YOLOv3Head.iou_aware=true", "num_classes=2"])
    assert teacher.cfg == before and teacher.cfg["num_classes"] == 4


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (None, "Distill.teacher: None is not valid; expected teacher: {config: FILE.yml, "),
        ("x.yml", "Distill.teacher: 'x.yml' is not valid"),
        ({}, "Distill.teacher.config is missing; expected teacher: {config: "),
        ({"weights": "x"}, "Distill.teacher.config is missing"),
        ({"config": "x.yml"}, "Distill.teacher.weights is missing; expected the .pdparams file"),
        ({"config": "x.yml", "weights": None}, "Distill.teacher.weights is missing"),
        ({"tree": {"architecture": "YOLOv3"}}, "Distill.teacher.weights is missing"),
        ({"conf": "x.yml"}, "Distill.teacher: unknown key 'conf'; did you mean 'config'?"),
        ({"config": 3, "weights": "x"}, "Distill.teacher.config: expected the path of a file"),
        ({"config": "x.yml", "weights": 3}, "Distill.teacher.weights: expected the path"),
    ],
)
def test_settings_that_are_not_valid(cfg: Any, spec: Any, said: str) -> None:
    assert refused(ConfigError, spec).startswith(said)


def test_files_that_are_missing(cfg: Any, tiny: Path, unpruned: Path, tmp_path: Path) -> None:
    missing = tiny.with_name("tinny.yml")
    line = refused(ConfigError, {"config": str(missing), "weights": str(unpruned)})
    assert line == f"Distill.teacher: {missing} does not exist; did you mean 'tiny.yml'?"
    line = refused(WeightsError, {"config": str(tiny), "weights": str(tmp_path / "no")})
    assert line.startswith(f"Distill.teacher: weights '{tmp_path / 'no'}.pdparams' do not exist")


def test_configuration_that_is_not_valid(
    cfg: Any, tiny: Path, unpruned: Path, tmp_path: Path
) -> None:
    """The student's architecture is not a default of the teacher's."""
    for content, said in (
        ({"epoch": 1}, "no 'architecture' is given"),
        ({"_BASE_": [str(tiny)], "MobileNet": {"scal": 1}}, "did you mean 'scale'?"),
        ({"_BASE_": [str(tiny)], "ScaledYOLOv3FPN": {"width": 0.3}}, "width 0.3"),
    ):
        path = write(tmp_path / "teacher.yml", content)
        line = refused(ConfigError, {"config": str(path), "weights": str(unpruned)})
        assert line.startswith("Distill.teacher: ") and said in line


def test_weights_must_be_exactly_its_own(
    cfg: Any, tiny: Path, unpruned: Path, trained: Path, tmp_path: Path
) -> None:
    """A tensor more or less, another shape, another model's plan."""
    path = str(write(tmp_path / "t.yml", {"_BASE_": [str(tiny)], "num_classes": 5}))
    line = refused(WeightsError, {"config": path, "weights": str(unpruned)})
    assert "the file is of 4 classes, num_classes is 5" in line
    state = stored(unpruned)
    state.pop("neck.yolo_block.0.tip.conv.weight")
    paddle.save(state, str(tmp_path / "less.pdparams"))
    line = refused(WeightsError, {"config": str(tiny), "weights": str(tmp_path / "less")})
    assert "neck.yolo_block.0.tip.conv.weight" in line
    path = str(write(tmp_path / "u.yml", {"_BASE_": [str(tiny)], "MobileNet": {"scale": 0.5}}))
    assert "plan" in refused(PlanError, {"config": path, "weights": str(trained)})


def test_weights_at_an_address(cfg: Any, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for any weights: ppdet's cache, and one line where it cannot be reached."""
    from ppdet.utils import checkpoint as of_ppdet

    asked = []

    def offline(url: str) -> str:
        asked.append(url)
        raise RuntimeError("no network")

    monkeypatch.setattr(of_ppdet, "get_weights_path", offline)
    url = "https://no.such/teacher.pdparams"
    line = refused(WeightsError, {"config": str(tiny), "weights": url})
    assert line == f"Distill.teacher: weights '{url}' cannot be downloaded: no network"
    assert asked == [url]
