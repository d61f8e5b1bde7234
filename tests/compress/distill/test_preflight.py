"""What is said of a teacher before the first epoch, and when nothing is."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from slim_det.compress.distill import preflight
from slim_det.compress.distill.distiller import distiller_of
from slim_det.compress.distill.preflight import DistillPreflight
from slim_det.core.errors import ConfigError, DataError
from slim_det.evaluate.evaluation import EvalResult
from tests.compress.distill.tiny_detectors import distilled, tiny_detector


class Measured:
    """Stands in for the evaluation: every model has a known AP."""

    def __init__(self, teacher: Any, student: Any) -> None:
        self.ap = {id(teacher): 0.5, id(student): 0.25}
        self.models: list[Any] = []

    def __call__(self, cfg: Any, model: Any) -> EvalResult:
        self.models.append(model)
        return EvalResult("coco_ap", self.ap[id(model)], 0.9, {}, 6, "dygraph", 1.0)


@pytest.fixture
def trainer(fresh_config: Any) -> Any:
    """One that is about to train a student with a teacher."""
    student, teacher = tiny_detector(1), tiny_detector(2)
    distilled(student, teacher, "l2", 1.0)
    return SimpleNamespace(cfg={"skip_teacher_eval": False}, model=student, start_epoch=0)


@pytest.fixture
def measured(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> Measured:
    found = Measured(distiller_of(trainer.model).teacher, trainer.model)
    monkeypatch.setattr(preflight, "check_dataset", lambda cfg, name: 6)
    monkeypatch.setattr(preflight, "evaluate_model", found)
    return found


@pytest.fixture
def begin(trainer: Any, caplog: pytest.LogCaptureFixture) -> Any:
    """Start the training; gives what was said, each line with its level."""

    def run() -> list[tuple[int, str]]:
        with caplog.at_level(logging.INFO, "slim_det"):
            DistillPreflight(trainer).on_train_begin({})
        said = [r for r in caplog.records if r.filename == "preflight.py"]
        return [(record.levelno, record.getMessage()) for record in said]

    return run


def test_both_are_measured_and_named(trainer: Any, measured: Measured, begin: Any) -> None:
    lines = begin()
    assert measured.models == [distiller_of(trainer.model).teacher, trainer.model]
    assert [level for level, _ in lines] == [logging.INFO] * 2
    assert lines[0][1].startswith("teacher: coco_ap 0.5000 on 6 images")
    assert lines[1][1].startswith("student before training: coco_ap 0.2500 on 6 images")


@pytest.mark.parametrize(("ap", "warns"), [(0.49, False), (0.5, False), (0.51, True)])
def test_a_worse_teacher_is_a_warning(
    trainer: Any, measured: Measured, begin: Any, ap: float, warns: bool
) -> None:
    """Worse, not as good as."""
    measured.ap[id(trainer.model)] = ap
    warnings = [text for level, text in begin() if level == logging.WARNING]
    assert len(warnings) == warns
    if warns:
        assert "THE TEACHER IS WORSE THAN THE STUDENT: coco_ap 0.5000 against 0.5100" in warnings[0]
        assert "check Distill.teacher.config and weights" in warnings[0]


@pytest.mark.parametrize("case", ["plain", "resumed", "other process"])
def test_nothing_is_measured(
    trainer: Any, measured: Measured, begin: Any, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """Without a teacher, in a run that has seen the figures, and in all processes but one."""
    if case == "plain":
        distiller_of(trainer.model).detach()
    elif case == "resumed":
        trainer.start_epoch = 1
    else:
        monkeypatch.setattr(DistillPreflight, "is_main_process", False)
    assert begin() == [] and measured.models == []


def test_left_out_on_request(trainer: Any, measured: Measured, begin: Any) -> None:
    trainer.cfg["skip_teacher_eval"] = True
    assert begin() == [(logging.INFO, "the teacher is not measured, as asked")]
    assert measured.models == []


@pytest.mark.parametrize("where", ["check_dataset", "evaluate_model"])
def test_data_that_cannot_be_measured(
    measured: Measured, begin: Any, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """No data, or a metric that is not supported: one line, and training continues."""
    error = DataError("no data") if where == "check_dataset" else ConfigError("no metric")

    def fail(*arguments: Any, **settings: Any) -> Any:
        raise error

    monkeypatch.setattr(preflight, where, fail)
    assert begin() == [(logging.WARNING, f"the teacher cannot be measured: {error}")]
