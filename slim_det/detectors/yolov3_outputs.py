"""The raw outputs of a YOLO head: which layers give them, and what their channels mean."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from paddle.nn import Layer

BOX_VALUES = 5
"""Channels of an anchor before those of its classes."""

# Channels of an anchor.
XY, WH, OBJECTNESS, CLASSES = slice(0, 2), slice(2, 4), 4, slice(BOX_VALUES, None)

_FIRST_BIAS = "yolo_head.yolo_output.0.bias"


def yolo_head(model: Layer) -> Any:
    """The head of a YOLO detector; None for any other detector."""
    return getattr(model, "yolo_head", None)


def yolo_outputs(model: Layer) -> list[str]:
    """Paths of the convolutions that give the raw YOLO outputs, in order of scales.

    Each gives [N, anchors * (5 + classes), H, W].
    """
    paths = {path for path, _ in model.named_sublayers()}
    names = (f"yolo_head.yolo_output.{scale}" for scale in itertools.count())
    return list(itertools.takewhile(paths.__contains__, names))


def forward_without_boxes(model: Layer, batch: Any) -> Any:
    """Run a model on a batch as far as its raw outputs.

    The boxes of a YOLO detector are neither decoded nor sorted: its parts run one by one. Any
    other detector runs to its end.

    Args:
        model: A detector of ppdet, in the mode to run it in.
        batch: What its ``forward`` takes; not changed.
    """
    batch = dict(batch) if isinstance(batch, dict) else batch
    if not all(hasattr(model, part) for part in ("backbone", "neck", "yolo_head")):
        return model(batch)
    return model.yolo_head(model.neck(model.backbone(batch)))


def output_layout(model: Layer) -> dict[str, Any]:
    """What the raw outputs of a YOLO detector with anchors mean; empty for any other detector.

    Returns:
        ``anchors``: width and height in pixels of the anchors of each scale; ``strides``: pixels
        per cell of each scale, empty where the loss does not state them; ``iou_aware``.
    """
    head = yolo_head(model)
    if not hasattr(head, "anchors"):
        return {}
    return {
        "anchors": [[list(anchor) for anchor in scale] for scale in head.anchors],
        "strides": list(getattr(getattr(head, "loss", None), "downsample", None) or ()),
        "iou_aware": bool(getattr(head, "iou_aware", False)),
    }


def class_hint(model: Layer, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Words for an error where weights are of another number of classes; '' where they are not.

    Args:
        model: A detector.
        shapes: State-dict name -> shape, of the weights.
    """
    head = yolo_head(model)
    if _FIRST_BIAS not in shapes or not hasattr(head, "num_classes"):
        return ""
    classes = shapes[_FIRST_BIAS][0] // len(head.anchors[0]) - BOX_VALUES
    if classes == head.num_classes:
        return ""
    return f"; the file is of {classes} classes, num_classes is {head.num_classes}"
