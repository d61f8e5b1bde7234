"""A program for one image scales boxes back as ppdet does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import paddle
import pytest
from paddle.static import InputSpec
from ppdet.modeling.post_process import BBoxPostProcess

from slim_det.detectors.single_images import follow_one_image, images_at_once
from slim_det.graph.trace import layer_program

ROWS = [
    [2, 0.9, 10, 20, 30, 60],
    [0, 0.8, -5, 4, 1000, 1000],
    [1, 0.7, 8, 9, 8, 40],
    [3, 0.6, 300, 9, 500, 40],
]
"""Inside, clipped on every side, without a width, and beside the image."""


class Last(paddle.nn.Layer):
    """What a two-stage detector does with the boxes that NMS leaves."""

    def __init__(self, batch: int | None) -> None:
        super().__init__()
        self.post_process = BBoxPostProcess(num_classes=4)
        self.specs = [
            InputSpec([None, 6], "float32", "boxes"),
            InputSpec([None], "int32", "number"),
            InputSpec([batch, 2], "float32", "im_shape"),
            InputSpec([batch, 2], "float32", "scale_factor"),
        ]

    def forward(self, boxes: Any, number: Any, im_shape: Any, scale_factor: Any) -> Any:
        return self.post_process.get_pred(boxes, number, im_shape, scale_factor)


@pytest.fixture(autouse=True)
def replaced() -> Iterator[None]:
    before = BBoxPostProcess.get_pred
    follow_one_image()
    yield
    BBoxPostProcess.get_pred = before


def feeds(rows: list[list[float]]) -> dict[str, np.ndarray]:
    """Boxes of an image of 100x200 pixels that was doubled in height and halved in width."""
    return {
        "boxes": np.asarray(rows, "float32").reshape(-1, 6),
        "number": np.asarray([len(rows)], "int32"),
        "im_shape": np.asarray([[200, 100]], "float32"),
        "scale_factor": np.asarray([[2.0, 0.5]], "float32"),
    }


@pytest.mark.parametrize("rows", [ROWS, ROWS[:1], ROWS[2:3], []])
def test_boxes_in_pixels_of_the_image(rows: list[list[float]]) -> None:
    """As ppdet gives them without a program, and as calculated by hand."""
    layer, given = Last(batch=1), feeds(rows)
    expected = [
        value.numpy() for value in layer(*(paddle.to_tensor(array) for array in given.values()))
    ]
    found = list(layer_program(layer, layer.specs).engine(threads=1)(given).values())
    for one, other in zip(found, expected):
        np.testing.assert_array_equal(one, other)
    by_hand = [
        [2, 0.9, 20, 10, 60, 30],
        [0, 0.8, 0, 2, 200, 100],
        [-1, 0.7, 16, 4.5, 16, 20],
        [-1, 0.6, 200, 4.5, 200, 20],
    ]
    kept = [by_hand[ROWS.index(row)] for row in rows] or [[0, 0, 0, 0, 2, 0.5]]
    np.testing.assert_allclose(found[1], kept, rtol=1e-6)
    assert found[2].tolist() == [max(1, len(rows))]


def test_detectors_without_proposals_take_any_number_of_images() -> None:
    model = paddle.nn.Layer()
    assert images_at_once(model) is None
    model.rpn_head = paddle.nn.Layer()
    assert images_at_once(model) == 1
