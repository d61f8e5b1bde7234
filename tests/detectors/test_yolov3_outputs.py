"""Raw outputs of a YOLO detector: where they are, and a forward pass that ends there."""

from __future__ import annotations

import paddle
from paddle import nn

from slim_det.detectors.yolov3_outputs import forward_without_boxes, output_layout, yolo_outputs
from tests.compress.distill.tiny_detectors import make_batch, tiny_detector


def test_raw_yolo_outputs_in_order_of_scales() -> None:
    assert yolo_outputs(nn.Linear(1, 1)) == []
    assert yolo_outputs(tiny_detector(0)) == ["yolo_head.yolo_output.0", "yolo_head.yolo_output.1"]


def test_a_yolo_detector_runs_without_boxes() -> None:
    model, batch = tiny_detector(0), make_batch()
    model.eval()
    raw = forward_without_boxes(model, batch)
    assert [x.shape for x in raw] == [[2, 6, 2, 2], [2, 6, 4, 4]]
    assert model.runs == {"backbone": 1, "boxes": 0}


def test_another_model_runs_to_its_end() -> None:
    double = nn.Linear(1, 1)
    double.weight.set_value(paddle.to_tensor([[2.0]]))
    assert forward_without_boxes(double, paddle.to_tensor([[6.0]])).item() == 12.0


def test_a_head_without_anchors_has_no_layout() -> None:
    """As PP-YOLOE's, which is called the same."""
    model = nn.Layer()
    model.yolo_head = nn.Linear(1, 1)
    assert output_layout(model) == output_layout(nn.Linear(1, 1)) == {}
    model.yolo_head.anchors = [[[7, 8]]]
    assert output_layout(model) == {"anchors": [[[7, 8]]], "strides": [], "iou_aware": False}
