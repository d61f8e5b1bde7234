"""The head of face detectors: ppdet's layers, and weights with which a training can begin."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from ppdet.modeling.heads.face_head import FaceHead as FaceHeadOfPpdet
from ppdet.modeling.layers import AnchorGeneratorSSD

from slim_det.detectors.blazeface.head import INITIAL_DEVIATION, FaceHead
from slim_det.detectors.blazeface.loss import SSDLoss

KEYS = {"num_classes": 1, "in_channels": [96, 96]}
SIZES = {"steps": [8.0, 16.0], "aspect_ratios": [[1.0], [1.0]], "offset": 0.5, "flip": False}


def anchors() -> AnchorGeneratorSSD:
    return AnchorGeneratorSSD(
        min_sizes=[[16.0, 24.0], [32.0, 48.0, 64.0]], max_sizes=[[], []], **SIZES
    )


def test_weights_are_small_and_biases_zero():
    paddle.seed(0)
    head = FaceHead(**KEYS, anchor_generator=anchors(), loss=SSDLoss())
    for name, parameter in head.named_parameters():
        expected = INITIAL_DEVIATION if name.endswith("weight") else 0.0
        assert float(parameter.std()) == pytest.approx(expected, rel=0.1), name


def test_layers_and_outputs_are_those_of_ppdet():
    theirs = FaceHeadOfPpdet(**KEYS, anchor_generator=anchors(), loss=SSDLoss())
    ours = FaceHead(**KEYS, anchor_generator=anchors(), loss=SSDLoss())
    missing, unexpected = ours.set_state_dict(theirs.state_dict())
    assert not missing and not unexpected
    image = paddle.randn([1, 3, 64, 64])
    features = [paddle.randn([1, 96, 64 // stride, 64 // stride]) for stride in (8, 16)]
    for head in (theirs, ours):
        head.eval()
    for expected, found in zip(*(head(features, image)[0] for head in (theirs, ours))):
        for left, right in zip(expected, found):
            np.testing.assert_array_equal(left.numpy(), right.numpy())
    assert len(ours.state_dict()) == 8


def test_loss_of_the_start_is_that_of_knowing_nothing():
    """As with weights of zero, but for a little: ppdet's weights give another loss by far."""
    paddle.seed(0)
    features = [paddle.randn([2, 96, 64 // stride, 64 // stride]) for stride in (8, 16)]
    face = [[[20 / 64, 20 / 64, 36 / 64, 36 / 64]]] * 2
    image, labels = paddle.zeros([2, 3, 64, 64]), paddle.zeros([2, 1], "int32")
    losses = []
    for build in (FaceHead, FaceHeadOfPpdet, FaceHead):
        head = build(**KEYS, anchor_generator=anchors(), loss=SSDLoss(overlap_threshold=0.35))
        if len(losses) == 2:
            for parameter in head.parameters():
                parameter.set_value(paddle.zeros_like(parameter))
        losses.append(float(head(features, image, paddle.to_tensor(face), labels)))
    ours, theirs, knowing_nothing = losses
    assert ours < 2 * knowing_nothing < theirs
