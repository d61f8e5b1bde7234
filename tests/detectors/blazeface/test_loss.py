"""The loss of single-shot detectors, against values by hand and a loop over images."""

from __future__ import annotations

import math

import numpy as np
import paddle
import pytest

from slim_det.detectors.blazeface.loss import SSDLoss
from tests.support import assert_same_sums

ANCHORS = [[0.0, 0.0, 0.1, 0.1], [0.1, 0.1, 0.3, 0.3], [0.5, 0.5, 0.7, 0.7], [0.8, 0.8, 0.9, 0.9]]


def loss_of(scores, faces, offsets=None, **keys) -> float:
    """Of one image with four anchors; classes are face and background."""
    boxes = paddle.zeros([1, 4, 4]) if offsets is None else paddle.to_tensor([offsets], "float32")
    faces_xyxy = paddle.to_tensor([faces], "float32").reshape([1, -1, 4])
    labels = paddle.zeros(faces_xyxy.shape[:2], "int32")
    scores = paddle.to_tensor([scores], "float32")
    loss = SSDLoss(overlap_threshold=0.35, **keys)
    anchors = paddle.to_tensor(ANCHORS, "float32")
    return float(loss([boxes], [scores], faces_xyxy, labels, [anchors]))


def test_no_face_counts_the_hardest_hundredth_of_the_anchors():
    """Less than one of four anchors is one."""
    scores = [[0.0, 9.0], [2.0, 0.0], [0.0, 9.0], [0.0, 9.0]]
    assert loss_of(scores, [[0.0] * 4]) == pytest.approx(math.log(1 + math.exp(2)), rel=1e-5)


def test_a_perfect_detector_loses_nothing():
    scores = [[-30.0, 30.0], [30.0, -30.0], [-30.0, 30.0], [-30.0, 30.0]]
    assert loss_of(scores, [ANCHORS[1]]) == pytest.approx(0.0, abs=1e-6)


def test_by_hand():
    """One matched anchor, one negative for it, and a smooth L1 of a half at |2 - 0| = 2."""
    scores = [[0.0, 5.0], [0.0, 0.0], [3.0, 0.0], [1.0, 0.0]]
    offsets = [[0.0] * 4, [2.0, 0.0, 0.0, 0.0], [7.0] * 4, [7.0] * 4]
    expected = math.log(2) + math.log(1 + math.exp(3)) + 1.5
    found = loss_of(scores, [ANCHORS[1]], offsets, neg_pos_ratio=1.0)
    assert found == pytest.approx(expected, rel=1e-5)


def test_rows_that_fill_up_change_nothing():
    scores = [[0.3, 0.1], [0.2, 0.9], [0.5, -0.4], [1.0, 0.0]]
    faces = [ANCHORS[1], ANCHORS[2]]
    assert_same_sums(loss_of(scores, faces + [[0.0] * 4] * 88), loss_of(scores, faces))


@pytest.mark.parametrize("face", [[180.0] * 2 + [180.05] * 2, [-9.0] * 4, [0.9, 0.9, 0.1, 0.1]])
def test_a_face_outside_the_image_counts_like_none(face: list[float]):
    """No anchor overlaps it, nor a box whose corners are exchanged; its offsets are not learned."""
    scores = [[0.0, 9.0], [2.0, 0.0], [0.0, 9.0], [0.0, 9.0]]
    assert_same_sums(loss_of(scores, [face]), loss_of(scores, [[0.0] * 4]))


@pytest.mark.parametrize("seed", range(5))
def test_hard_negatives_as_a_loop_over_images_finds_them(seed: int):
    generator = np.random.default_rng(seed)
    losses = generator.permutation(3 * 40).reshape(3, 40).astype("float32") + 1
    labels = np.where(generator.random((3, 40)) < [[0.1], [0.4], [0.0]], 0, 1)
    expected = labels == 0
    for image, (loss, label) in enumerate(zip(losses, labels)):
        faces = int((label == 0).sum())
        wanted = math.ceil(40 * 0.01) if faces == 0 else min(3 * faces, 40)
        hardest = sorted(np.flatnonzero(label == 1), key=lambda anchor: -loss[anchor])
        expected[image, hardest[:wanted]] = True
    found = SSDLoss()._mine_hard_example(paddle.to_tensor(losses), paddle.to_tensor(labels), 1)
    np.testing.assert_array_equal(found.numpy(), expected)


def test_only_what_counts_has_a_gradient():
    scores = paddle.to_tensor([[[0.0, 5.0], [0.0, 0.0], [3.0, 0.0], [1.0, 0.0]]])
    scores.stop_gradient = False
    face = paddle.to_tensor([[ANCHORS[1]]])
    label = paddle.zeros([1, 1], "int32")
    loss = SSDLoss(overlap_threshold=0.35, neg_pos_ratio=1.0)
    loss([paddle.zeros([1, 4, 4])], [scores], face, label, [paddle.to_tensor(ANCHORS)]).backward()
    moved = scores.grad.abs().sum(axis=-1).numpy()[0] > 0
    assert moved.tolist() == [False, True, True, False]
