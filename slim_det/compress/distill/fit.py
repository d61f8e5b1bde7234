"""Whether a teacher fits its student: the same classes, boxes and view of an image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import paddle

from slim_det.compress.distill.teacher import Teacher
from slim_det.core.errors import ConfigError

# Declared by ppdet's NormalizeImage, for what a reader leaves out.
_NORMALIZE_DEFAULTS = {
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "is_scale": True,
    "norm_type": "mean_std",
}
_READERS = ("TrainReader", "EvalReader", "TestReader")
_TRANSFORMS = ("sample_transforms", "batch_transforms")
_NUM_CLASSES = 80  # ppdet's, where a configuration says nothing


def check_fit(
    student: paddle.nn.Layer,
    student_cfg: Mapping[str, Any],
    teacher: Teacher,
    compare_outputs: bool = True,
) -> None:
    """Refuse a teacher whose outputs mean something else than the student's.

    Compared are the number of classes, the anchors and strides of each scale of a YOLO head, and
    how the readers normalise an image: the teacher sees the student's batch.

    Args:
        student: The student.
        student_cfg: ppdet's configuration of the student.
        teacher: The teacher.
        compare_outputs: False where only features are compared; then only the images matter.

    Raises:
        ConfigError: One line that names everything that differs, with both values.
    """
    found = []
    if compare_outputs:
        found += _class_differences(
            num_classes(student, student_cfg), num_classes(teacher.model, teacher.cfg)
        )
        found += _head_differences(student, teacher.model)
    found += _image_differences(student_cfg, teacher.cfg)
    if found:
        raise ConfigError(f"the teacher does not fit the student: {'; '.join(found)}")


def _differs(what: str, student: Any, teacher: Any) -> str:
    return f"{what}: {student} in the student, {teacher} in the teacher"


def _class_differences(student: int, teacher: int) -> list[str]:
    return [_differs("num_classes", student, teacher)] if student != teacher else []


def num_classes(model: paddle.nn.Layer, cfg: Mapping[str, Any]) -> int:
    """Of the head, which may have a number of its own; else of the configuration.

    Args:
        model: A detector.
        cfg: Its configuration.
    """
    default = cfg.get("num_classes", _NUM_CLASSES)
    return int(getattr(_head(model), "num_classes", default))


def _head(model: paddle.nn.Layer) -> Any:
    return getattr(model, "yolo_head", None)


def _head_differences(student: paddle.nn.Layer, teacher: paddle.nn.Layer) -> list[str]:
    heads = [_head(student), _head(teacher)]
    if None in heads:
        if heads == [None, None]:
            return []
        names = ["no YOLO head" if head is None else "a YOLO head" for head in heads]
        return [_differs("architecture", *names)]
    found = []
    anchors = [_anchors(head) for head in heads]
    strides = [_strides(head) for head in heads]
    aware = [bool(getattr(head, "iou_aware", False)) for head in heads]
    if len(anchors[0]) != len(anchors[1]):
        found.append(_differs("number of scales", *map(len, anchors)))
    if anchors[0] != anchors[1]:
        # The same anchors on other scales come from the masks.
        pools = [sorted(anchor for scale in side for anchor in scale) for side in anchors]
        what = "anchors" if pools[0] != pools[1] else "anchor_masks, which choose"
        found.append(_differs(what, *anchors))
    if all(strides) and strides[0] != strides[1]:
        found.append(_differs("strides", *strides))
    if aware[0] != aware[1]:
        found.append(_differs("iou_aware", *aware))
    return found


def _anchors(head: Any) -> list[list[list[float]]]:
    """Width and height in pixels of the anchors of each scale, as the masks choose them."""
    return [[list(anchor) for anchor in scale] for scale in head.anchors]


def _strides(head: Any) -> list[int]:
    """Pixels a cell of each scale; empty where the loss does not say it."""
    return list(getattr(getattr(head, "loss", None), "downsample", None) or ())


def _image_differences(student: Mapping[str, Any], teacher: Mapping[str, Any]) -> list[str]:
    ours, theirs = _normalization(student), _normalization(teacher)
    left, right = _pixel_line(ours), _pixel_line(theirs)
    if left.shape == right.shape and np.allclose(left, right, rtol=1e-4, atol=1e-6):
        return []
    return [_differs("NormalizeImage", ours or "none", theirs or "none")]


def _normalization(cfg: Mapping[str, Any]) -> dict[str, Any] | None:
    """Settings of the first reader that has transforms; None where it leaves pixels alone."""
    for name in _READERS:
        reader = cfg.get(name) or {}
        steps = [s for key in _TRANSFORMS for s in reader.get(key) or ()]
        for step in steps:
            if "NormalizeImage" in step:
                return {**_NORMALIZE_DEFAULTS, **(step["NormalizeImage"] or {})}
        if steps:
            return None
    return None


def _pixel_line(settings: Mapping[str, Any] | None) -> np.ndarray:
    """Slope and offset, [2, channels], by which a pixel of 0 to 255 enters the model.

    Settings that are written differently may give the same line (mean and std in 0 to 1 with
    ``is_scale``, or in 0 to 255 without).
    """
    if settings is None:
        return np.array([[1.0] * 3, [0.0] * 3])
    scale = 1.0 / 255.0 if settings["is_scale"] else 1.0
    if settings["norm_type"] == "none":
        return np.array([[scale] * 3, [0.0] * 3])
    mean, std = (np.asarray(settings[key], dtype=np.float64) for key in ("mean", "std"))
    return np.stack([scale / std, -mean / std])
