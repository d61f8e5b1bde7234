"""What ppdet 2.6 expects of Paddle works again, and nothing else changes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import paddle
import pytest
from ppdet.modeling.assigners import ATSSAssigner, TaskAlignedAssigner

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


def test_assigners_are_replaced_once() -> None:
    before = TaskAlignedAssigner.forward
    follow_paddle()
    assert TaskAlignedAssigner.forward.__wrapped__ is before.__wrapped__
