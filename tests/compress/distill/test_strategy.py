"""The `Distill` of a slim file: it ties a student to a teacher, and leaves it what it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
import yaml
from ppdet.core.workspace import create, global_config

from slim_det.compress.distill.distiller import distiller_of
from slim_det.compress.distill.strategy import Distill
from slim_det.compress.strategy import Context
from slim_det.core.errors import ConfigError, LayerError, SlimDetError, WeightsError
from slim_det.core.safe_yaml import merge
from slim_det.training import session
from slim_det.training.config import load_config

CONTEXT = Context(global_config, (96, 96), load_detector=session.load_detector)
TIP = "neck.yolo_block.0.tip"
PAIR = {"student": TIP, "teacher": TIP, "loss": "feature_l2"}


@pytest.fixture
def student(fresh_config: Any, tiny: Path) -> paddle.nn.Layer:
    """The tiny detector, untrained; its configuration is ppdet's."""
    cfg = load_config(tiny)
    paddle.seed(2)
    return session.build_model(cfg)


@pytest.fixture
def teacher(tiny: Path, unpruned: Path) -> dict[str, str]:
    return {"config": str(tiny), "weights": str(unpruned)}


def arrays(model: paddle.nn.Layer) -> dict[str, np.ndarray]:
    return {name: value.numpy().copy() for name, value in model.state_dict().items()}


def refused(kind: type[SlimDetError], student: paddle.nn.Layer, **settings: Any) -> str:
    """The one line of a refusal, after which nothing hangs on the student."""
    with pytest.raises(kind) as caught:
        Distill(**settings)(student, CONTEXT)
    assert distiller_of(student) is None and "\n" not in str(caught.value)
    return str(caught.value)


def test_defaults(teacher: dict[str, str]) -> None:
    """`l2` of the raw outputs at its published weight, from the first epoch to the last."""
    (term,) = Distill(teacher).terms
    assert (term.name, term.student, term.teacher, term.weight) == ("l2", None, None, 100.0)
    assert [term.schedule.factor(epoch) for epoch in (0, 1000)] == [1.0, 1.0]


def test_every_setting_reaches_its_term(teacher: dict[str, str]) -> None:
    terms = Distill(
        teacher,
        loss="split",
        weight=3.0,
        pairs=[{**PAIR, "weight": 2.0, "ramp_epochs": 0}],
        start_epoch=2,
        end_epoch=5,
        ramp_epochs=1,
    ).terms
    assert [(term.name, term.weight) for term in terms] == [("split", 3.0), ("feature_l2", 2.0)]
    factors = [[term.schedule.factor(epoch) for epoch in range(1, 6)] for term in terms]
    assert factors == [[0.0, 0.5, 1.0, 1.0, 0.0], [0.0, 1.0, 1.0, 1.0, 0.0]]


def test_settings_are_checked_before_anything_is_built() -> None:
    with pytest.raises(ConfigError, match="unknown loss 'l3'"):
        Distill({"config": "gone.yml", "weights": "gone"}, loss="l3")


def test_the_student_stays_the_model_it_was(
    student: paddle.nn.Layer, teacher: dict[str, str]
) -> None:
    """The same object with the same tensors; the teacher and the adaptors are no part of it."""
    before, parts = arrays(student), [id(layer) for layer in student.sublayers()]
    model = Distill(teacher, pairs=[PAIR])(student, CONTEXT)
    assert model is student
    after = arrays(student)
    assert list(before) == list(after)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert [id(layer) for layer in student.sublayers()] == parts
    assert not any(layer.training for layer in student.sublayers(include_self=True))


def test_the_teacher_is_tied_to_it(
    student: paddle.nn.Layer, teacher: dict[str, str], unpruned: Path
) -> None:
    Distill(teacher, loss=None, pairs=[PAIR])(student, CONTEXT)
    distiller = distiller_of(student)
    assert [term.key for term in distiller.terms] == ["distill_feature_l2"]
    assert all(parameter.stop_gradient for parameter in distiller.teacher.parameters())
    stored = paddle.load(f"{unpruned}.pdparams", return_numpy=True)
    found = arrays(distiller.teacher)
    assert all(np.array_equal(found[name], stored[name]) for name in stored)


def test_a_second_teacher_is_refused(student: paddle.nn.Layer, teacher: dict[str, str]) -> None:
    Distill(teacher)(student, CONTEXT)
    first = distiller_of(student)
    with pytest.raises(ConfigError, match="the student has a teacher already"):
        Distill(teacher)(student, CONTEXT)
    assert distiller_of(student) is first


def test_outputs_are_compared_only_where_a_term_reads_them(
    student: paddle.nn.Layer, teacher: dict[str, str], tiny: Path, tmp_path: Path
) -> None:
    """Other anchors do not matter to features."""
    config = tmp_path / "anchors.yml"
    head = {"anchors": [[8, 8]] * 9}
    config.write_text(yaml.safe_dump({"_BASE_": [str(tiny)], "YOLOv3Head": head}))
    other = {**teacher, "config": str(config)}
    for settings in ({"loss": "split"}, {"loss": None, "pairs": [{"loss": "dml"}]}):
        line = refused(ConfigError, student, teacher=other, **settings)
        assert "the teacher does not fit the student: anchors: " in line
    Distill(other, loss=None, pairs=[PAIR])(student, CONTEXT)
    assert distiller_of(student) is not None


def test_classes_are_those_of_the_head(
    fresh_config: Any, teacher: dict[str, str], tiny: Path
) -> None:
    """Which may say so itself, whatever the top level says."""
    cfg = load_config(tiny, ["YOLOv3Head.num_classes=4", "num_classes=7"])
    student = session.build_model(cfg)
    Distill(teacher, loss="split")(student, CONTEXT)
    (term,) = distiller_of(student).terms
    assert term.options.num_classes == 4


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        (WeightsError, {"teacher": {"weights": "gone"}}, "weights 'gone.pdparams' do not exist"),
        (ConfigError, {"teacher": {"config": "gone.yml"}}, "gone.yml does not exist"),
        (LayerError, {"pairs": [{**PAIR, "student": "nek"}]}, "pair 'feature_l2': student: "),
    ],
)
def test_nothing_hangs_on_a_student_that_was_refused(
    student: paddle.nn.Layer,
    teacher: dict[str, str],
    kind: type[SlimDetError],
    settings: dict[str, Any],
    said: str,
) -> None:
    source = {**teacher, **settings.get("teacher", {})}
    assert said in refused(kind, student, **{**settings, "teacher": source})


def test_ppdet_makes_it_from_the_configuration(
    student: paddle.nn.Layer, teacher: dict[str, str]
) -> None:
    merge(global_config, {"Distill": {"teacher": teacher, "loss": "split"}})
    assert create("Distill").terms[0].weight == 1000.0
