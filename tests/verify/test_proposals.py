"""The second of two models pools features of the boxes of the first."""

from __future__ import annotations

import numpy as np
import paddle
from paddle.vision import ops

from slim_det.verify.proposals import Proposals

BOXES = np.array([[0, 0, 10, 10], [0, 0, 200, 200]], np.float32)


def distributed(boxes: np.ndarray) -> list[list[list[float]]]:
    """The boxes of each level."""
    levels, _, _ = ops.distribute_fpn_proposals(
        paddle.to_tensor(boxes), 2, 3, 3, 112, rois_num=paddle.to_tensor([len(boxes)], "int32")
    )
    return [level.tolist() for level in levels]


def test_boxes_of_the_first_are_used() -> None:
    original, proposals = ops.distribute_fpn_proposals, Proposals()
    with proposals.recorded():
        first = distributed(BOXES)
    assert first == distributed(BOXES) == [[BOXES[0].tolist()], [BOXES[1].tolist()]]
    with proposals.replayed():
        assert distributed(BOXES + 40.0) == first
        assert distributed(BOXES + 1.0) != first  # there was no second pooling
    assert ops.distribute_fpn_proposals is original


def test_another_number_of_boxes_is_kept() -> None:
    proposals = Proposals()
    with proposals.recorded():
        distributed(BOXES)
    with proposals.replayed():
        assert distributed(BOXES[:1]) == [[BOXES[0].tolist()], []]
