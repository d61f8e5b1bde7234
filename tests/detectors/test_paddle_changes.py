"""What ppdet 2.6 expects of Paddle works again, and nothing else changes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import paddle
import pytest
from ppdet.modeling.assigners import ATSSAssigner, TaskAlignedAssigner
from ppdet.modeling.heads import TTFHead
from ppdet.modeling.losses import CTFocalLoss, GIoULoss

from slim_det.detectors.paddle_changes import follow_paddle


@pytest.fixture(autouse=True)
def joined() -> Iterator[None]:
    before = paddle.concat
    follow_paddle()
    yield
    paddle.concat = before


def test_numbers_become_a_list() -> None:
    found = paddle.concat([paddle.to_tensor(3), paddle.to_tensor(5)])
    assert found.tolist() == [3, 5]
    assert paddle.concat((paddle.to_tensor(1.5),), axis=0).tolist() == [1.5]


def test_gradients_pass() -> None:
    x = paddle.to_tensor(2.0, stop_gradient=False)
    paddle.concat([x, x * 3.0]).sum().backward()
    assert float(x.grad) == 4.0


def test_other_tensors_are_joined_as_before() -> None:
    x = paddle.to_tensor(np.arange(6.0).reshape(2, 3))
    assert paddle.concat([x, x], axis=1).shape == [2, 6]
    assert paddle.concat(x=[x, x], axis=-1, name="y").shape == [2, 6]
    assert paddle.concat([x, x]).tolist() == x.tolist() * 2


def test_numbers_and_lists_do_not_mix() -> None:
    with pytest.raises(ValueError):
        paddle.concat([paddle.to_tensor(3), paddle.to_tensor([5])])


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_boxes_are_assigned_with_labels_of_any_width(dtype: str) -> None:
    """Four anchors and one object, which is at the second."""
    anchors = paddle.to_tensor([[8.0 * i, 0.0, 8.0 * i + 8.0, 8.0] for i in range(4)])
    labels = paddle.to_tensor([[[3]]], dtype=dtype)
    mask = paddle.ones([1, 1, 1])
    found, _, scores, *_ = ATSSAssigner(topk=4, num_classes=5)(
        anchors, [4], gt_labels=labels, gt_bboxes=anchors[1:2].unsqueeze(0), pad_gt_mask=mask,
        bg_index=5,
    )  # fmt: skip
    assert found.tolist() == [[5, 3, 5, 5]]
    assert scores[0].sum(axis=-1).astype("bool").tolist() == [False, True, False, False]


def test_the_loss_of_ttfnet_counts_pixels() -> None:
    """One object, whose box is found to the pixel: nothing is lost but by the heat map."""
    head = TTFHead(8, num_classes=1, hm_loss=CTFocalLoss(), wh_loss=GIoULoss())
    heat, weight = paddle.zeros([1, 1, 2, 2]), paddle.zeros([1, 1, 2, 2])
    heat[0, 0, 1, 1], weight[0, 0, 1, 1] = 1.0, 1.0
    box = paddle.to_tensor([0.0, 0.0, 8.0, 8.0]).reshape([1, 4, 1, 1]).expand([1, 4, 2, 2])
    sides = paddle.full([1, 4, 2, 2], 4.0)  # of the pixel at 4, 4
    before = paddle.arange
    losses = head.get_loss(paddle.full([1, 1, 2, 2], 9.0), sides, heat, box, weight)
    assert float(losses["wh_loss"]) == pytest.approx(0.0, abs=1e-5)
    assert float(losses["hm_loss"]) > 0.1
    assert paddle.arange is before


def test_assigners_are_replaced_once() -> None:
    before = TaskAlignedAssigner.forward
    follow_paddle()
    assert TaskAlignedAssigner.forward.__wrapped__ is before.__wrapped__
