"""Focal and global distillation against the formula of its paper, written with loops."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from slim_det.compress.distill.focal_global import FocalGlobalContext, GlobalContext, fgd
from slim_det.compress.distill.loss import Options
from slim_det.core.errors import ConfigError
from tests.compress.distill.loss_formulas import noise, softmax, tensor

SHAPE = (2, 3, 4, 5)
# The first image has an object of 2x2 places inside one of 4x3, the second none.
BOXES = [np.array([[0.0, 0.0, 0.6, 1.0], [0.2, 0.25, 0.6, 0.75]]), np.zeros((0, 4))]
NONE = {"alpha": 0.0, "beta": 0.0, "gamma": 0.0, "lambda": 0.0}


def options(context: FocalGlobalContext | None = None, **factors: float) -> Options:
    return Options(
        temperature=0.5,
        factors={**NONE, **factors},
        boxes=BOXES,
        context=context or FocalGlobalContext(SHAPE[1]),
    )


def value(student: np.ndarray, teacher: np.ndarray, **factors: float) -> float:
    return float(fgd(tensor(student), tensor(teacher), options(**factors)))


def attentions(feature: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of one image [C, H, W]."""
    channels, height, width = feature.shape
    places = softmax(abs(feature).mean(axis=0).ravel() / 0.5).reshape(height, width)
    return places * height * width, softmax(abs(feature).mean(axis=(1, 2)) / 0.5) * channels


def by_hand(student: np.ndarray, teacher: np.ndarray) -> dict[str, float]:
    found = dict.fromkeys(("alpha", "beta", "gamma"), 0.0)
    for image in range(SHAPE[0]):
        (places, channels), ours = attentions(teacher[image]), attentions(student[image])
        found["gamma"] += abs(places - ours[0]).sum() + abs(channels - ours[1]).sum()
        for row in range(4):
            for column in range(5):
                area = 0
                if image == 0 and column < 3:
                    area = 4 if row in (1, 2) and column in (1, 2) else 12
                free = 5 * 4 - (12 if image == 0 else 0)
                for channel in range(3):
                    distance = student[image, channel, row, column]
                    distance = (distance - teacher[image, channel, row, column]) ** 2
                    distance *= places[row, column] * channels[channel]
                    found["alpha" if area else "beta"] += distance / (area or free)
    return {name: total / SHAPE[0] for name, total in found.items()}


def test_equal_maps_have_nothing_to_learn() -> None:
    same = noise(SHAPE, 0)
    assert value(same, same, alpha=1.0, beta=1.0, gamma=1.0) == 0.0
    assert value(same, same, **{"lambda": 1.0}) == 0.0  # contexts add nothing at first


@pytest.mark.parametrize("part", ["alpha", "beta", "gamma"])
def test_each_part_by_the_formula(part: str) -> None:
    student, teacher = noise(SHAPE, 0), noise(SHAPE, 1)
    expected = by_hand(student, teacher)[part]
    assert expected > 0.0
    assert value(student, teacher, **{part: 3.0}) == pytest.approx(3.0 * expected, rel=1e-4)


def test_relation_is_the_squared_distance_at_first() -> None:
    student, teacher = noise(SHAPE, 0), noise(SHAPE, 1)
    expected = ((student - teacher) ** 2).sum() / SHAPE[0]
    assert value(student, teacher, **{"lambda": 1.0}) == pytest.approx(expected, rel=1e-4)


def test_a_global_context_adds_the_same_to_every_place() -> None:
    context = GlobalContext(4)
    feature = tensor(noise((1, 4, 3, 3), 0))
    assert np.array_equal(context(feature).numpy(), feature.numpy())
    context.transform[3].bias.set_value(np.array([1.0, 2.0, 3.0, 4.0], "float32"))
    added = context(feature).numpy() - feature.numpy()
    assert added == pytest.approx(
        np.broadcast_to([[[1]], [[2]], [[3]], [[4]]], (1, 4, 3, 3)), abs=1e-5
    )


def test_student_and_contexts_learn_and_the_teacher_does_not() -> None:
    student, teacher = tensor(noise(SHAPE, 0), trains=True), tensor(noise(SHAPE, 1), trains=True)
    context = FocalGlobalContext(SHAPE[1])
    fgd(student, teacher, options(context, alpha=1.0, **{"lambda": 1.0})).backward()
    assert student.grad is not None
    assert teacher.grad is None
    assert context.student.transform[3].weight.grad is not None
    assert context.teacher.transform[3].weight.grad is not None


def test_other_shapes_and_numbers_of_images_are_one_line() -> None:
    with pytest.raises(ConfigError, match="must have equal shapes"):
        value(noise((2, 3, 4, 4), 0), noise(SHAPE, 1))
    with pytest.raises(ConfigError, match="2 images with boxes for 1 maps"):
        value(noise((1, *SHAPE[1:]), 0), noise((1, *SHAPE[1:]), 1))
    with pytest.raises(ConfigError, match="needs its global contexts"):
        fgd(paddle.ones(SHAPE), paddle.ones(SHAPE), Options())
