"""What a distiller adds to a student's losses, and everything that it leaves alone."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import paddle
import pytest
from paddle import nn

from slim_det.compress.distill.distiller import Distiller, distiller_of
from slim_det.compress.distill.settings import read_terms
from slim_det.core.errors import ConfigError, LayerError, TrainingError
from tests.compress.distill.tiny_detectors import (
    CLASSES,
    arrays,
    distilled,
    make_batch,
    pair,
    raw_outputs,
    same,
    tiny_detector,
)
from tests.support import trace_plain


@pytest.fixture(autouse=True)
def _registered(ppdet_registered: None) -> None:
    """AuxiliaryModules take ppdet's optimizer."""


def own_loss(student: Any, batch: Any) -> float:
    """The student's detection loss: the mean square of its raw outputs less 1."""
    return float(sum(np.square(x - 1.0).mean() for x in raw_outputs(student, batch)))


def l2_by_hand(student: Any, teacher: Any, batch: Any) -> float:
    """Summed over the scales: the mean squared difference of the raw outputs."""
    pairs = zip(raw_outputs(student, batch), raw_outputs(teacher, batch))
    return float(sum(np.square(ours - theirs).mean() for ours, theirs in pairs))


def test_student_and_teacher_alike() -> None:
    """The same weights and the same statistics give a term of exactly 0."""
    student, teacher = tiny_detector(1), tiny_detector(1)
    distilled(student, teacher, "l2")
    student.backbone.bn.eval()
    losses = student(make_batch())
    assert losses["distill_l2"].item() == 0.0
    assert losses["loss"].item() == (losses["loss_0"] + losses["loss_1"]).item()


def test_total_is_the_students_loss_and_the_weighted_term() -> None:
    student, teacher, batch = tiny_detector(1), tiny_detector(2), make_batch()
    distilled(student, teacher, "l2", 7.0)
    losses = student(batch)
    term = 7.0 * l2_by_hand(student, teacher, batch)
    assert list(losses) == ["loss_0", "loss_1", "loss", "distill_l2"]
    assert losses["distill_l2"].item() == pytest.approx(term, rel=1e-5)
    assert losses["loss"].item() == pytest.approx(own_loss(student, batch) + term, rel=1e-5)


def test_several_terms_have_names_of_their_own() -> None:
    student, teacher = tiny_detector(1), tiny_detector(2)
    distilled(student, teacher, "l2", pairs=[pair("fsp"), pair("fsp", "neck.tips.0", weight=3.0)])
    losses = student(make_batch())
    assert set(losses) == {
        *("loss_0", "loss_1", "loss", "distill_l2", "distill_fsp_0", "distill_fsp_1")
    }
    parts = sum(value.item() for name, value in losses.items() if name != "loss")
    assert losses["loss"].item() == pytest.approx(parts, rel=1e-5)


def test_fsp_reads_input_and_output_of_its_layers() -> None:
    """The flow of a 1x1 place is the product of input and output channels."""
    student, teacher, batch = tiny_detector(1), tiny_detector(2), make_batch()
    distilled(student, teacher, None, pairs=[pair("fsp")])
    flows = []
    for model in (student, teacher):
        inside = model.backbone(batch)
        outside = model.neck.tips[1](inside)
        flows.append(np.einsum("nmhw,nkhw->nmk", inside.numpy(), outside.numpy()) / 16)
    expected = np.square(flows[0] - flows[1]).mean()
    assert student(batch)["distill_fsp"].item() == pytest.approx(expected, rel=1e-4)


def test_the_gradient_reaches_the_student_alone() -> None:
    student, teacher = tiny_detector(1), tiny_detector(2)
    distilled(student, teacher, "l2", pairs=[pair("feature_l2")])
    student(make_batch())["loss"].backward()
    assert student.neck.tips[1].weight.grad is not None
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_the_teacher_stays_bit_identical() -> None:
    student, teacher = tiny_detector(1), tiny_detector(2)
    before, began = arrays(teacher), arrays(student)
    distilled(student, teacher, "split", pairs=[pair("cwd")])
    optimizer = paddle.optimizer.Momentum(1e-3, 0.9, parameters=student.parameters())
    for seed in range(3):
        student(make_batch(seed))["loss"].backward()
        optimizer.step()
        optimizer.clear_grad()
    assert same(before, arrays(teacher))
    assert not any(layer.training for layer in teacher.sublayers(include_self=True))
    after = arrays(student)
    assert not np.array_equal(after["backbone.bn._mean"], began["backbone.bn._mean"])
    assert not np.array_equal(after["neck.tips.0.weight"], began["neck.tips.0.weight"])


def test_only_the_student_is_in_the_student() -> None:
    """State, parameters and what is traced for export are those of the student alone."""
    plain = tiny_detector(1)
    student, teacher = tiny_detector(1), tiny_detector(2, width=6)
    distiller = distilled(student, teacher, None, pairs=[pair("feature_l2")])
    student(make_batch())
    assert distiller.auxiliary_modules is not None
    assert list(student.state_dict()) == list(plain.state_dict())
    assert [p.name for p in student.parameters()] == [p.name for p in plain.parameters()]
    assert len(student.sublayers()) == len(plain.sublayers())
    # The backbone takes a dict, so the neck is traced: its taps are in place.
    ours, theirs = (trace_plain(model.neck, 1, 4, 4, 4) for model in (student, plain))
    assert [op.type for op in ours.ops] == [op.type for op in theirs.ops]


def test_only_raw_outputs_keep_their_shape_when_the_student_is_cut() -> None:
    outputs = distilled(tiny_detector(1), tiny_detector(2), "l2")
    assert outputs.forbids_slicing == ""
    inner = distilled(tiny_detector(1), tiny_detector(2), "l2", pairs=[pair("feature_l2")])
    assert inner.forbids_slicing == "Distill compares inner layers (distill_feature_l2)"


def test_evaluation_is_left_alone() -> None:
    student, teacher, batch = tiny_detector(1), tiny_detector(2), make_batch()
    plain = tiny_detector(1)
    distilled(student, teacher, "l2")
    student.eval()
    plain.eval()
    ran = dict(teacher.runs)
    outputs = student(batch)
    assert list(outputs) == ["bbox"]
    assert np.array_equal(outputs["bbox"].numpy(), plain(batch)["bbox"].numpy())
    student.train()
    with paddle.no_grad():
        assert "distill_l2" not in student(batch)
    assert teacher.runs == ran


def test_a_teacher_makes_no_boxes() -> None:
    student, teacher = tiny_detector(1), tiny_detector(2)
    distilled(student, teacher, "l2")
    ran = teacher.runs["backbone"]
    student(make_batch())
    assert teacher.runs == {"backbone": ran + 1, "boxes": 0}


def test_the_teacher_runs_only_while_a_term_acts() -> None:
    """Terms act in epochs 2 and 3, at 1/2 and at the full weight."""
    student, teacher, batch = tiny_detector(1), tiny_detector(2), make_batch()
    distiller = distilled(student, teacher, "l2", 8.0, start_epoch=2, end_epoch=4, ramp_epochs=1)
    full, runs, keys = 8.0 * l2_by_hand(student, teacher, batch), [], set()
    for epoch, share in enumerate([0.0, 0.0, 0.5, 1.0, 0.0]):
        distiller.epoch = epoch
        before = teacher.runs["backbone"]
        losses = student(batch)
        runs.append(teacher.runs["backbone"] - before)
        keys.add(tuple(losses))
        assert losses["distill_l2"].item() == pytest.approx(share * full, rel=1e-5)
        own = losses["loss_0"].item() + losses["loss_1"].item()
        assert losses["loss"].item() == pytest.approx(own + share * full, rel=1e-5)
    assert runs == [0, 0, 1, 1, 0]
    assert len(keys) == 1, "ppdet logs the keys of its first step in every step"


def test_attach_and_detach() -> None:
    student, teacher, batch = tiny_detector(1), tiny_detector(2), make_batch()
    distiller = Distiller(student, teacher, read_terms("l2"), CLASSES)
    student.train()
    assert distiller_of(student) is None and "distill_l2" not in student(batch)
    distiller.attach()
    distiller.attach()
    assert distiller_of(student) is distiller
    before = teacher.runs["backbone"]
    assert "distill_l2" in student(batch)
    assert teacher.runs["backbone"] == before + 1
    with pytest.raises(ConfigError, match="has a teacher already"):
        Distiller(student, tiny_detector(3), read_terms("l2"), CLASSES).attach()
    distiller.detach()
    assert distiller_of(student) is None and "distill_l2" not in student(batch)


@pytest.mark.parametrize(
    ("part", "bias", "culprit"),
    [
        ("teacher", np.nan, "distill_l2 is nan"),
        ("student", np.nan, "the student's 'yolo_head.yolo_output.1' is nan"),
        ("student", 1e30, "loss_1 is infinite"),
    ],
)
def test_it_stops_with_epoch_step_and_culprit(part: str, bias: float, culprit: str) -> None:
    models = {"student": tiny_detector(1), "teacher": tiny_detector(2)}
    distiller = distilled(models["student"], models["teacher"], None, pairs=[pair("feature_l2")])
    distiller.detach()
    distiller = distilled(models["student"], models["teacher"], "l2")
    distiller.epoch, distiller.step = 3, 17
    models[part].yolo_head.outputs[1].bias.set_value(np.full(6, bias, "float32"))
    with pytest.raises(TrainingError, match=f"epoch 3, step 17: {culprit}") as error:
        models["student"](make_batch())
    assert "\n" not in str(error.value)
    # Nothing has learned from it.
    assert all(p.grad is None for p in models["student"].parameters())


def test_a_peer_is_watched_as_the_student_is() -> None:
    """Before its own loss; a model that is evaluated may give what it likes."""
    student, teacher = tiny_detector(1), tiny_detector(2)
    distilled(student, teacher, "dml")
    teacher.yolo_head.outputs[0].bias.set_value(np.full(6, np.nan, "float32"))
    teacher.eval()
    teacher(make_batch())
    with pytest.raises(TrainingError, match="the peer's 'yolo_head.yolo_output.0' is nan"):
        student(make_batch())


def test_infinity_stops_in_any_step() -> None:
    student, teacher = tiny_detector(1), tiny_detector(2)
    distiller = distilled(student, teacher, "l2", start_epoch=1)
    student(make_batch())
    teacher.yolo_head.outputs[0].bias.set_value(np.full(6, 1e30, "float32"))
    student(make_batch())
    distiller.epoch, distiller.step = 1, 4
    with pytest.raises(TrainingError, match="epoch 1, step 4: distill_l2 is infinite"):
        student(make_batch())


def test_gradients_are_reported_once_a_term(caplog: pytest.LogCaptureFixture) -> None:
    student, teacher, batch = tiny_detector(1), tiny_detector(2), make_batch()
    pairs = [pair("feature_l2", start_epoch=1)]
    distiller = distilled(student, teacher, "l2", 1000.0, pairs=pairs)
    with caplog.at_level(logging.INFO, "slim_det"):
        for epoch in (0, 0, 1, 1):
            distiller.epoch = epoch
            student(batch)
    tables = [r.getMessage() for r in caplog.records if r.levelno == logging.INFO]
    assert [text.count("distill_feature_l2") for text in tables] == [0, 1]
    assert all(text.count("distill_l2") == 1 for text in tables)
    warned = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert warned and all("distill_l2 dominates the detection loss" in text for text in warned)


def test_reported_norms_are_those_of_backward(caplog: pytest.LogCaptureFixture) -> None:
    """Compared with the gradients that a separate backward pass leaves on the parameters."""
    student, teacher, batch = tiny_detector(1), tiny_detector(2), make_batch()
    distilled(student, teacher, "l2", 0.5)
    with caplog.at_level(logging.INFO, "slim_det"):
        losses = student(batch)
    shown = {
        line.split()[0]: float(line.split()[2])
        for line in caplog.text.splitlines()
        if line.startswith(("loss ", "distill_l2"))
    }
    norms = {}
    for name in ("detection", "distill_l2"):
        value = losses["loss"] - losses["distill_l2"] if name == "detection" else losses[name]
        value.backward(retain_graph=True)
        gradients = [p.grad.numpy() for p in student.parameters() if p.grad is not None]
        norms[name] = np.sqrt(sum(np.square(g).sum() for g in gradients))
        student.clear_gradients()
    assert shown["loss"] == pytest.approx(norms["detection"], rel=1e-4)
    assert shown["distill_l2"] == pytest.approx(norms["distill_l2"], rel=1e-4)


def test_layers_that_do_not_fit_are_named_with_their_shapes() -> None:
    pairs = [{"student": "neck.tips.0", "teacher": "neck.tips.1", "loss": "feature_l2"}]
    with pytest.raises(ConfigError) as error:
        distilled(tiny_detector(1), tiny_detector(2), None, pairs=pairs)
    for word in ("'neck.tips.0' ([1, 4, 2, 2])", "'neck.tips.1' ([1, 4, 4, 4])", "feature_l2"):
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_a_loss_without_adaptors_needs_equal_channels() -> None:
    with pytest.raises(ConfigError, match="distill_fsp.*neck.tips.1"):
        distilled(tiny_detector(1), tiny_detector(2, width=6), None, pairs=[pair("fsp")])


def test_unknown_and_unused_layers() -> None:
    student, teacher = tiny_detector(1), tiny_detector(2)
    with pytest.raises(LayerError, match=r"pair 'fsp': student: .*did you mean"):
        distilled(student, teacher, None, pairs=[pair("fsp", "neck.tip.1")])
    with pytest.raises(TrainingError, match="'neck.unused' of TinyDetector does not run"):
        distilled(student, teacher, None, pairs=[pair("feature_l2", "neck.unused")])


def test_models_without_the_same_yolo_outputs() -> None:
    student = tiny_detector(1)
    with pytest.raises(ConfigError, match="student has 2 raw YOLO outputs and the teacher 1"):
        distilled(student, tiny_detector(2, scales=1), "l2")
    with pytest.raises(ConfigError, match="the teacher, Sequential, has no 'yolo_head"):
        Distiller(student, nn.Sequential(nn.Conv2D(3, 4, 1)), read_terms("l2"), CLASSES)


def test_a_student_has_to_return_losses() -> None:
    student = tiny_detector(1)
    distilled(student, tiny_detector(2), "l2", start_epoch=1)
    student.yolo_head.eval()
    with pytest.raises(TrainingError, match="returned a list in training; expected a dict"):
        student(make_batch())


def test_one_convolution_learns_its_teacher() -> None:
    """With nothing but the term to follow, the student's outputs become the teacher's."""
    student, teacher, batch = tiny_detector(1), tiny_detector(2), make_batch()
    distilled(student, teacher, "l2", 1.0)
    optimizer = paddle.optimizer.Adam(0.02, parameters=student.parameters())
    first = last = 0.0
    for step in range(60):
        term = student(batch)["distill_l2"]
        term.backward()
        optimizer.step()
        optimizer.clear_grad()
        first, last = (term.item() if step == 0 else first), term.item()
    assert last < 0.1 * first
