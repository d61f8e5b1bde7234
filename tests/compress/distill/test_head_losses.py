"""Losses of heads against their formulas, written in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
import pytest

from slim_det.compress.distill.head_losses import ld, ppyoloe
from slim_det.compress.distill.loss import Options
from tests.compress.distill.loss_formulas import noise, sigmoid, softmax, tensor

ASSIGNED = np.array([[True, False, True], [False, False, False]])
WEIGHT = np.array([[0.5], [0.25]])
NONE = {"class": 0.0, "iou": 0.0, "dfl": 0.0, "ld": 0.0}


def kept(seed: int, trains: bool = False) -> dict[str, paddle.Tensor]:
    """Of two images with three anchors and four classes; two anchors are assigned."""
    boxes = np.array([[0.0, 0.0, 2.0, 2.0], [1.0, 1.0, 3.0, 3.0]]) + [0.0, 0.0, seed, 0.0]
    return {
        "pred_cls_scores": tensor(sigmoid(noise((2, 3, 4), seed)), trains),
        "pos_num": tensor(0.75),
        "bbox_weight": tensor(WEIGHT),
        "pred_bboxes_pos": tensor(boxes, trains),
        "pred_dist_pos": tensor(noise((2, 4, 5), seed + 10), trains),
        "mask_positive_select": paddle.to_tensor(ASSIGNED),
    }


def value(student: Any, teacher: Any, **factors: float) -> float:
    found = ppyoloe(student, teacher, Options(temperature=10.0, factors={**NONE, **factors}))
    assert found.shape == []
    return float(found)


def test_equal_outputs_have_nothing_to_learn_but_the_entropy_of_distances() -> None:
    same = kept(0)
    assert value(same, same, **{"class": 1.0, "iou": 1.0, "ld": 1.0}) == pytest.approx(0, abs=1e-6)
    assert value(same, same, dfl=1.0) > 0.0


def test_classes_of_all_anchors() -> None:
    ours, theirs = (sigmoid(noise((2, 3, 4), seed)) for seed in (0, 1))
    entropy = -theirs * np.log(ours) - (1 - theirs) * np.log(1 - ours)
    expected = ((ours - theirs) ** 2 * entropy).sum() / 0.75
    assert value(kept(0), kept(1), **{"class": 2.0}) == pytest.approx(2.0 * expected, rel=1e-4)


def test_boxes_of_assigned_anchors() -> None:
    """Boxes of 2x2 against 3x2 that contain them: IoU and GIoU are 4/6."""
    assert value(kept(0), kept(1), iou=2.5) == pytest.approx(2.5 * (1 - 4 / 6), rel=1e-4)


def test_distances_of_assigned_anchors() -> None:
    ours, theirs = (noise((2, 4, 5), seed) for seed in (10, 11))
    expected = 0.0
    for anchor in range(2):
        for side in range(4):
            guess, target = softmax(ours[anchor, side]), softmax(theirs[anchor, side])
            expected += float(WEIGHT[anchor, 0]) * -(target * np.log(guess)).sum() / 4
    assert value(kept(0), kept(1), dfl=1.0) == pytest.approx(expected / 0.75, rel=1e-4)


def test_softened_classes_of_assigned_anchors() -> None:
    ours, theirs = (sigmoid(noise((2, 3, 4), seed))[ASSIGNED] / 10.0 for seed in (0, 1))
    expected = 0.0
    for guess, target in zip(ours, theirs):
        target, guess = softmax(target), softmax(guess)
        expected += (target * np.log(target / guess)).sum() / 4 / 2 * 100.0
    assert value(kept(0), kept(1), ld=20000.0) == pytest.approx(20000.0 * expected, rel=1e-2)


def test_without_objects_only_classes_are_compared() -> None:
    empty = {name: kept(0)[name] for name in ("pred_cls_scores", "pos_num")}
    factors = {"class": 1.0, "iou": 1.0, "dfl": 1.0, "ld": 1.0}
    assert value(empty, kept(1), **factors) == value(kept(0), kept(1), **{"class": 1.0})


def test_the_student_alone_learns() -> None:
    student, teacher = kept(0, trains=True), kept(1, trains=True)
    ppyoloe(
        student, teacher, Options(temperature=10.0, factors=dict.fromkeys(NONE, 1.0))
    ).backward()
    learning = [name for name, part in student.items() if part.grad is not None]
    assert learning == ["pred_cls_scores", "pred_bboxes_pos", "pred_dist_pos"]
    assert all(part.grad is None for part in teacher.values())


def test_ld_is_the_sum_of_what_the_head_computed() -> None:
    assert float(ld({"a": tensor(1.5), "b": tensor([2.0])}, {}, Options())) == 3.5
    assert float(ld({}, {}, Options())) == 0.0
