"""Losses against values worked out by hand, and against their formulas written in numpy."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import paddle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slim_det.compress.distill.losses import LOSSES, Options
from tests.compress.distill.loss_formulas import (
    ANCHORS,
    BY_HAND,
    CLASSES,
    OF_ONE_TENSOR,
    OPTIONS,
    YOLO_SHAPE,
    fsp_by_hand,
    noise,
    slope,
    tensor,
    yolo,
)

LOG_2 = float(np.log(2.0))


def value(name: str, student: Any, teacher: Any, options: Options = OPTIONS) -> float:
    """The loss of two arrays (for a flow, of two pairs of arrays)."""
    if LOSSES[name].reads == "flow":
        student, teacher = ([tensor(part) for part in side] for side in (student, teacher))
    else:
        student, teacher = tensor(student), tensor(teacher)
    result = LOSSES[name].function(student, teacher, options)
    assert result.shape == []
    assert result.dtype == paddle.float32
    return float(result)


# The table.


def test_the_published_constants() -> None:
    assert {name: loss.weight for name, loss in LOSSES.items()} == {
        "l2": 100.0,
        "split": 1000.0,
        "fsp": 1.0,
        "soft_label": 1.0,
        "feature_l2": 1.0,
        "cwd": 5.0,
        "dml": 1.0,
        "fgd": 1.0,
        "ppyoloe": 4.0,
        "ld": 1.0,
    }
    heats = {name: loss.temperature for name, loss in LOSSES.items() if loss.temperature}
    assert heats == {"soft_label": 1.0, "cwd": 1.0, "fgd": 0.5, "ppyoloe": 10.0}
    others = ["fsp", "fgd", "ppyoloe", "ld"]
    assert [name for name in LOSSES if name not in OF_ONE_TENSOR] == others
    assert [name for name, loss in LOSSES.items() if loss.reads == "head"] == ["ppyoloe", "ld"]
    assert [name for name, loss in LOSSES.items() if loss.on_yolo_outputs] == ["l2", "split", "dml"]
    assert [name for name, loss in LOSSES.items() if loss.adapts] == ["feature_l2", "cwd", "fgd"]
    assert [name for name, loss in LOSSES.items() if loss.is_mutual] == ["dml"]


# Values worked out on paper.


@pytest.mark.parametrize("name", ["l2", "feature_l2", "cwd", "dml"])
def test_equal_tensors_have_nothing_to_learn(name: str) -> None:
    same = noise(YOLO_SHAPE, 0)
    assert value(name, same, same) == 0.0
    assert value(name, same, same + noise(YOLO_SHAPE, 1)) > 0.0


def test_equal_flows_have_nothing_to_learn() -> None:
    same = [noise((2, 3, 4, 4), 0), noise((2, 5, 4, 4), 1)]
    assert value("fsp", same, same) == 0.0


def test_l2_by_hand() -> None:
    """Differences 1, 2, 0, 0, 0, 1: (1 + 4 + 1) / 6 = 1, times the published 100."""
    weighted = LOSSES["l2"].weight * value("l2", yolo(x=1.0, y=2.0), yolo(cls=1.0))
    assert weighted == pytest.approx(100.0)


def test_feature_l2_is_l2_of_any_shape() -> None:
    assert value("feature_l2", [3.0, 0.0], [0.0, 4.0]) == pytest.approx(12.5)


def test_split_by_hand_where_the_teacher_is_sure_of_an_object() -> None:
    """x, y and class are even (log 2 each), w is off by 3, h by 1, objectness is right."""
    student = yolo(w=3.0, h=-1.0, obj=60.0)
    weighted = LOSSES["split"].weight * value("split", student, yolo(obj=60.0), Options(1))
    assert weighted == pytest.approx(1000.0 * (3.0 * LOG_2 + 4.0), rel=1e-5)


def test_split_where_the_teacher_sees_background_teaches_objectness_only() -> None:
    student = yolo(x=9.0, y=-9.0, w=5.0, h=7.0, cls=4.0)
    assert value("split", student, yolo(obj=-60.0), Options(1)) == pytest.approx(LOG_2, rel=1e-5)


@pytest.mark.parametrize(("logit", "target"), [(0.0, 0.0), (1e-4, 1.0)])
def test_split_calls_it_an_object_only_above_one_half(logit: float, target: float) -> None:
    """Of student objectness +60, all else even: 60 is the price of an object denied."""
    expected = 1.5 * LOG_2 + (0.0 if target else 60.0)
    found = value("split", yolo(obj=60.0), yolo(obj=logit), Options(1))
    assert found == pytest.approx(expected, rel=1e-4)


def test_split_averages_each_part_over_its_own_elements() -> None:
    """A second class, learnt already, halves the class part and leaves the others alone."""
    one, two = yolo(obj=60.0), np.concatenate([yolo(obj=60.0), np.full((1, 1, 1, 1), 60.0)], axis=1)
    assert value("split", one, one, Options(1)) == pytest.approx(3.0 * LOG_2, rel=1e-5)
    assert value("split", two, two, Options(2)) == pytest.approx(2.5 * LOG_2, rel=1e-5)


def test_split_is_least_at_the_teachers_boxes_and_classes() -> None:
    teacher = noise(YOLO_SHAPE, 0)
    least = value("split", teacher, teacher)
    assert least > 0.0
    for seed in range(1, 6):
        move = noise(YOLO_SHAPE, seed).reshape(2, ANCHORS, 5 + CLASSES, 2, 3)
        move[:, :, 4] = 0.0
        assert value("split", teacher + move.reshape(YOLO_SHAPE), teacher) > least


def test_fsp_by_hand() -> None:
    """Two places. Student: (1*2 + 3*4) / 2 = 7; teacher: (1*1 + 1*1) / 2 = 1; (7 - 1)^2 = 36."""
    student = [np.array([1.0, 3.0]).reshape(1, 1, 1, 2), np.array([2.0, 4.0]).reshape(1, 1, 1, 2)]
    teacher = [np.ones((1, 1, 2, 1)), np.ones((1, 1, 2, 1))]
    assert value("fsp", student, teacher) == pytest.approx(36.0)


def test_fsp_needs_no_equal_places_in_student_and_teacher() -> None:
    """Of constant maps the flow is the same at every size."""
    small = [np.full((1, 2, 2, 2), 3.0), np.full((1, 4, 2, 2), 0.5)]
    large = [np.full((1, 2, 8, 6), 3.0), np.full((1, 4, 8, 6), 0.5)]
    assert value("fsp", small, large) == 0.0


def test_soft_label_by_hand() -> None:
    """Teacher 1/4, 3/4; student 1/2, 1/2: log 2 whatever the teacher says."""
    student, teacher = np.array([[np.log(3.0), 0.0]]), np.array([[0.0, np.log(3.0)]])
    cold, hot = Options(temperature=1.0), Options(temperature=4.0)
    assert value("soft_label", [[5.0, 5.0]], teacher, cold) == pytest.approx(LOG_2, rel=1e-5)
    expected = -0.25 * np.log(0.75) - 0.75 * np.log(0.25)
    assert value("soft_label", student, teacher, cold) == pytest.approx(expected, rel=1e-5)
    found = value("soft_label", 4.0 * student, 4.0 * teacher, hot)
    assert found == pytest.approx(16.0 * expected, rel=1e-5)


def test_soft_label_is_least_at_the_teacher_where_it_is_the_entropy() -> None:
    teacher = np.array([[0.0, np.log(3.0)]])
    entropy = -0.25 * np.log(0.25) - 0.75 * np.log(0.75)
    least = value("soft_label", teacher, teacher, Options(temperature=1.0))
    assert least == pytest.approx(entropy, rel=1e-5)
    for move in ([[0.5, 0.0]], [[-0.5, 0.0]], [[0.0, 3.0]]):
        assert value("soft_label", teacher + move, teacher, Options(temperature=1.0)) > least


def test_temperature_leaves_the_gradient_of_small_logits_as_it_is() -> None:
    """Hot softmaxes are linear in the logits: the gradient goes to (s - t) / classes."""
    slopes = []
    for heat in (50.0, 200.0):
        student = tensor([[1.0, -1.0, 0.0]], trains=True)
        LOSSES["soft_label"].function(
            student, tensor(np.zeros((1, 3))), Options(0, heat)
        ).backward()
        slopes.append(student.grad.numpy())
    np.testing.assert_allclose(slopes, [[[1 / 3, -1 / 3, 0.0]]] * 2, atol=1e-2)


def test_cwd_by_hand() -> None:
    """One channel, two places: teacher 1/4, 3/4, student even; a second channel agrees."""
    teacher = np.array([[0.0, np.log(3.0)], [1.0, 1.0]]).reshape(1, 2, 1, 2)
    student = np.array([[2.0, 2.0], [7.0, 7.0]]).reshape(1, 2, 1, 2)
    divergence = 0.25 * np.log(0.25 / 0.5) + 0.75 * np.log(0.75 / 0.5)
    weighted = LOSSES["cwd"].weight * value("cwd", student, teacher, Options(temperature=1.0))
    assert weighted == pytest.approx(5.0 * divergence / 2.0, rel=1e-5)
    hot = value("cwd", 3.0 * student, 3.0 * teacher, Options(temperature=3.0))
    assert hot == pytest.approx(9.0 * divergence / 2.0, rel=1e-5)


def test_cwd_ignores_the_strength_of_a_channel() -> None:
    teacher = noise((2, 3, 4, 4), 0)
    strength = 300.0 * np.arange(6.0).reshape(2, 3, 1, 1)
    assert value("cwd", teacher + strength, teacher) == pytest.approx(0.0, abs=1e-6)


def test_dml_by_hand() -> None:
    """The class differs, 3/4 against 1/2; x, y and objectness agree; w and h do not count."""
    peer = yolo(w=8.0, h=-8.0, cls=float(np.log(3.0)))
    divergence = 0.75 * np.log(0.75 / 0.5) + 0.25 * np.log(0.25 / 0.5)
    assert value("dml", yolo(), peer, Options(1)) == pytest.approx(divergence / 4.0, rel=1e-5)


# Against the formulas in numpy, and against what is installed.


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_values_are_those_of_the_formulas(seed: int) -> None:
    student, teacher = noise(YOLO_SHAPE, seed), noise(YOLO_SHAPE, seed + 1)
    for name, by_hand in BY_HAND.items():
        expected = by_hand(student, teacher)
        assert value(name, student, teacher) == pytest.approx(expected, rel=1e-4), name


@pytest.mark.parametrize("name", BY_HAND)
def test_gradients_are_those_of_the_formulas(name: str) -> None:
    at, teacher = noise(YOLO_SHAPE, 1), tensor(noise(YOLO_SHAPE, 2), trains=True)
    student = tensor(at, trains=True)
    LOSSES[name].function(student, teacher, OPTIONS).backward()
    expected = slope(lambda moved: BY_HAND[name](moved, noise(YOLO_SHAPE, 2)), at)
    np.testing.assert_allclose(student.grad.numpy(), expected, rtol=1e-3, atol=1e-6)
    assert abs(expected).max() > 1e-4
    assert teacher.grad is None


def test_fsp_and_its_gradients_are_those_of_the_formula() -> None:
    shapes = [(2, 3, 4, 4), (2, 5, 4, 4)]
    at = [noise(shape, i) for i, shape in enumerate(shapes)]
    target = [noise(shape, 9 + i) for i, shape in enumerate(shapes)]
    student = [tensor(part, trains=True) for part in at]
    teacher = [tensor(part, trains=True) for part in target]
    found = LOSSES["fsp"].function(student, teacher, OPTIONS)
    assert float(found) == pytest.approx(fsp_by_hand(at, target), rel=1e-4)
    found.backward()
    slopes = [
        slope(lambda moved: fsp_by_hand([moved, at[1]], target), at[0]),
        slope(lambda moved: fsp_by_hand([at[0], moved], target), at[1]),
    ]
    for part, expected in zip(student, slopes):
        np.testing.assert_allclose(part.grad.numpy(), expected, rtol=1e-3, atol=1e-5)
    assert all(part.grad is None for part in teacher)


def pairs_of_ppdet(outputs: list[paddle.Tensor]) -> Any:
    """A model as ``DistillYOLOv3Loss`` sees it, once ppdet's own loss took the outputs apart."""
    from ppdet.modeling.losses import YOLOv3Loss

    loss = YOLOv3Loss(num_classes=CLASSES, downsample=[32, 16], label_smooth=False)
    targets = {"gt_bbox": paddle.zeros([2, 1, 4])}
    for i, (batch, _, *size_hw) in enumerate(output.shape for output in outputs):
        targets[f"target{i}"] = paddle.zeros([batch, ANCHORS, 6 + CLASSES, *size_hw])
    loss(outputs, targets, [[[10, 13], [16, 30], [33, 23]]] * 2)
    return SimpleNamespace(yolo_head=SimpleNamespace(loss=loss))


def test_split_is_the_loss_of_ppdet(ppdet_registered: None) -> None:
    from ppdet.slim.distill_loss import DistillYOLOv3Loss

    shapes = [(2, 21, 2, 3), (2, 21, 4, 6)]
    students = [tensor(noise(shape, i), trains=True) for i, shape in enumerate(shapes)]
    teachers = [tensor(noise(shape, 9 + i)) for i, shape in enumerate(shapes)]
    theirs = DistillYOLOv3Loss()(pairs_of_ppdet(teachers), pairs_of_ppdet(students))
    theirs.backward()
    their_slopes = [student.grad.numpy().copy() for student in students]
    for student in students:
        student.clear_gradient()
    ours = LOSSES["split"].weight * sum(
        LOSSES["split"].function(student, teacher, OPTIONS)
        for student, teacher in zip(students, teachers)
    )
    ours.backward()
    assert float(ours) == pytest.approx(float(theirs), rel=1e-5)
    for student, expected in zip(students, their_slopes):
        np.testing.assert_allclose(student.grad.numpy(), expected, rtol=1e-4, atol=1e-4)


def test_cwd_is_the_loss_of_ppdet(ppdet_registered: None) -> None:
    """But for the 1e-5 that ppdet adds to each probability before the logarithm."""
    from ppdet.slim.distill_loss import CWDFeatureLoss

    student, teacher = noise((2, 3, 4, 4), 0), noise((2, 3, 4, 4), 1)
    theirs = CWDFeatureLoss(3, 3, tau=1.0, weight=5.0)(tensor(student), tensor(teacher))
    ours = LOSSES["cwd"].weight * value("cwd", student, teacher, Options(temperature=1.0))
    assert ours == pytest.approx(float(theirs), rel=1e-2)


# Extremes.


@pytest.mark.parametrize("name", OF_ONE_TENSOR)
@pytest.mark.parametrize("signs", [(1, 1), (1, -1), (-1, 1), (-1, -1)])
def test_extreme_logits_stay_finite(name: str, signs: tuple[int, int]) -> None:
    """Where half of the logits are +50 and half -50, in the student as given or reversed."""
    checkers = np.where(np.indices(YOLO_SHAPE).sum(axis=0) % 2, 50.0, -50.0)
    student = tensor(signs[0] * checkers, trains=True)
    result = LOSSES[name].function(student, tensor(signs[1] * checkers), OPTIONS)
    result.backward()
    assert np.isfinite(float(result))
    assert np.isfinite(student.grad.numpy()).all()
    assert float(result) >= 0.0
    if signs[0] != signs[1]:
        assert float(result) > 20.0


def test_wholly_opposed_probabilities_still_teach() -> None:
    """Student +50 against -50: KL is 50, and its slope 1 is not lost to rounding."""
    student = tensor(yolo(cls=50.0), trains=True)
    result = LOSSES["dml"].function(student, tensor(yolo(cls=-50.0)), Options(1))
    result.backward()
    assert float(result) == pytest.approx(50.0 / 4.0)
    np.testing.assert_allclose(student.grad.numpy(), yolo(cls=1.0 / 4.0), atol=1e-6)


def test_half_precision_is_judged_in_float32() -> None:
    """60000^2 is beyond float16."""
    far, near = paddle.full([1, 6, 1, 1], 60000.0, "float16"), paddle.zeros([1, 6, 1, 1], "float16")
    assert float(LOSSES["l2"].function(far, near, OPTIONS)) == pytest.approx(3.6e9, rel=1e-2)
