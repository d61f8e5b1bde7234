"""Whether a teacher fits its student: the same classes, anchors and normalisation of images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import paddle
from ppdet.data.transform.operators import NormalizeImage
from ppdet.modeling.cls_utils import _get_class_default_kwargs

from slim_det.compress.distill.teacher import Teacher
from slim_det.core.errors import ConfigError
from slim_det.detectors.yolov3_outputs import output_layout, yolo_head

_NORMALIZE_DEFAULTS = _get_class_default_kwargs(NormalizeImage)
_READERS = ("TrainReader", "EvalReader", "TestReader")
_TRANSFORMS = ("sample_transforms", "batch_transforms")
_OTHER_BOXES = {"NormalizeBox", "BboxXYXY2XYWH"}
_NUM_CLASSES = 80  # ppdet's default


def check_fit(
    student: paddle.nn.Layer,
    student_cfg: Mapping[str, Any],
    teacher: Teacher,
    compare_outputs: bool = True,
) -> None:
    """Refuse a teacher whose outputs do not mean the same as the student's.

    Compared are the number of classes, the anchors and strides of each scale of a YOLO head, and
    how the readers normalise an image, since the teacher sees the student's batch.

    Args:
        student: The student.
        student_cfg: ppdet's configuration of the student.
        teacher: The teacher.
        compare_outputs: False where only features are compared; then only images have to agree.

    Raises:
        ConfigError: One line that names everything that differs, with both values.
    """
    found = []
    if compare_outputs:
        classes = [num_classes(student, student_cfg), num_classes(teacher.model, teacher.cfg)]
        if classes[0] != classes[1]:
            found.append(_differs("num_classes", *classes))
        found += _layout_differences(output_layout(student), output_layout(teacher.model))
    found += _image_differences(student_cfg, teacher.cfg)
    if found:
        raise ConfigError(f"the teacher does not fit the student: {'; '.join(found)}")


def check_boxes(cfg: Mapping[str, Any]) -> None:
    """Refuse a training whose batches have no boxes in pixels.

    Args:
        cfg: ppdet's configuration of the student.

    Raises:
        ConfigError: A transform of `TrainReader` turns them into something else.
    """
    reader = cfg.get("TrainReader") or {}
    for key in _TRANSFORMS:
        for step in reader.get(key) or ():
            for name in _OTHER_BOXES.intersection(step):
                raise ConfigError(
                    f"Distill: loss 'fgd' reads boxes in pixels, and TrainReader.{key} has {name}; "
                    "take a loss that reads no boxes, such as cwd"
                )


def num_classes(model: paddle.nn.Layer, cfg: Mapping[str, Any]) -> int:
    """Number of classes of a detector: its head's, or else that of its configuration."""
    default = cfg.get("num_classes", _NUM_CLASSES)
    return int(getattr(yolo_head(model), "num_classes", default))


def _differs(what: str, student: Any, teacher: Any) -> str:
    return f"{what}: {student} in the student, {teacher} in the teacher"


def _layout_differences(student: Mapping[str, Any], teacher: Mapping[str, Any]) -> list[str]:
    if not student or not teacher:
        names = ["a YOLO head" if layout else "no YOLO head" for layout in (student, teacher)]
        return [_differs("architecture", *names)] if student or teacher else []
    found = []
    anchors = [student["anchors"], teacher["anchors"]]
    if len(anchors[0]) != len(anchors[1]):
        found.append(_differs("number of scales", *map(len, anchors)))
    if anchors[0] != anchors[1]:
        # The same anchors on other scales come from the masks.
        pools = [sorted(anchor for scale in side for anchor in scale) for side in anchors]
        what = "anchors" if pools[0] != pools[1] else "anchor_masks, which choose"
        found.append(_differs(what, *anchors))
    strides = [student["strides"], teacher["strides"]]
    if all(strides) and strides[0] != strides[1]:
        found.append(_differs("strides", *strides))
    if student["iou_aware"] != teacher["iou_aware"]:
        found.append(_differs("iou_aware", student["iou_aware"], teacher["iou_aware"]))
    return found


def _image_differences(student: Mapping[str, Any], teacher: Mapping[str, Any]) -> list[str]:
    ours, theirs = _normalization(student), _normalization(teacher)
    left, right = _pixel_line(ours), _pixel_line(theirs)
    if left.shape == right.shape and np.allclose(left, right, rtol=1e-4, atol=1e-6):
        return []
    return [_differs("NormalizeImage", ours or "none", theirs or "none")]


def _normalization(cfg: Mapping[str, Any]) -> dict[str, Any] | None:
    """Settings of the first reader that has transforms; None where it does not normalise."""
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
    """Slope and offset, [2, channels], that map a pixel of 0 to 255 to the model's input.

    Different settings may give the same line: mean and std in 0 to 1 with ``is_scale``, or in 0
    to 255 without.
    """
    if settings is None:
        return np.array([[1.0] * 3, [0.0] * 3])
    scale = 1.0 / 255.0 if settings["is_scale"] else 1.0
    if settings["norm_type"] == "none":
        return np.array([[scale] * 3, [0.0] * 3])
    mean, std = (np.asarray(settings[key], dtype=np.float64) for key in ("mean", "std"))
    return np.stack([scale / std, -mean / std])
