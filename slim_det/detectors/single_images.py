"""Detectors that find the boxes of one image at a time, and are deployed for one image."""

from __future__ import annotations

from typing import Any

import paddle
from ppdet.modeling.post_process import BBoxPostProcess, CenterNetPostProcess

_get_pred_of_ppdet = BBoxPostProcess.get_pred


def images_at_once(model: paddle.nn.Layer) -> int | None:
    """Number of images that a program of a detector takes; None for any.

    What CenterNet does behind its head is for one image, and would mix several. The proposals of
    two-stage detectors are found by a loop over images, which takes long to trace.
    """
    mixes = isinstance(getattr(model, "post_process", None), CenterNetPostProcess)
    return 1 if mixes or hasattr(model, "rpn_head") else None


def follow_one_image() -> None:
    """Let a program for one image scale its boxes back without ppdet's loop over images.

    Paddle joins the branches of the loop, which stands for any number of images, with different
    numbers of dimensions.
    """
    BBoxPostProcess.get_pred = _get_pred


def _get_pred(self: Any, bboxes: Any, bbox_num: Any, im_shape: Any, scale_factor: Any) -> Any:
    """`BBoxPostProcess.get_pred`: ppdet's, except in a program for one image."""
    if paddle.in_dynamic_mode() or self.export_onnx or self.export_eb or im_shape.shape[0] != 1:
        return _get_pred_of_ppdet(self, bboxes, bbox_num, im_shape, scale_factor)
    return _boxes_of_one_image(self, bboxes, bbox_num, im_shape, scale_factor)


def _boxes_of_one_image(
    post_process: Any, bboxes: Any, bbox_num: Any, im_shape: Any, scale_factor: Any
) -> Any:
    """Scale boxes back to the image and clip them; an image without boxes gets one of score 0.

    Returns:
        Boxes of the prepared image and of the original one, both [n, 6], and their number [1].
    """
    nothing = paddle.to_tensor([[0.0, 0.0, 0.0, 0.0, 1.0, 1.0]])
    number_of_nothing = paddle.to_tensor([1], dtype="int32")
    if bbox_num == 0:
        found, number = nothing, number_of_nothing
    else:
        found, number = bboxes, bbox_num
    number = paddle.reshape(number, [1])  # so that loops over images are known to run once
    size_hw = paddle.floor(im_shape / scale_factor + 0.5)
    post_process.origin_shape_list = paddle.expand(size_hw, [number, 2])
    size_wh = paddle.flip(size_hw, axis=[1])
    scale_wh = paddle.flip(scale_factor, axis=[1])
    corners = found[:, 2:] / paddle.concat([scale_wh, scale_wh], axis=1)
    corners = paddle.minimum(corners, paddle.concat([size_wh, size_wh], axis=1))
    corners = paddle.maximum(corners, paddle.zeros_like(corners))
    sides = corners[:, 2:] - corners[:, :2]
    has_area = paddle.min(sides, axis=1, keepdim=True) > 0.0
    kinds = paddle.where(has_area, found[:, :1], paddle.full_like(found[:, :1], -1.0))
    return found, paddle.concat([kinds, found[:, 1:2], corners], axis=1), number
