"""The size of the image that a detector is evaluated and deployed at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slim_det.core.errors import ConfigError

USUAL_STRIDE = 32
STRIDES = {"YOLOv3": USUAL_STRIDE, "BlazeFace": 16}
"""Architecture -> what height and width must be multiples of, where it decodes boxes by its grid.

Elsewhere a size is valid if the model runs at it.
"""

ANY_SIZE_ARCHITECTURES = ("BlazeFace",)
"""Detectors that accept images of any size."""


def image_size_hw(cfg: Any, requested: int | None = None) -> tuple[int, int]:
    """Height and width in pixels at which a detector is evaluated and deployed.

    Args:
        cfg: ppdet's configuration.
        requested: ``--image_size``, a side of a square that overrides the configuration.

    Images that keep their ratio and are padded, as in two-stage detectors, have the largest size
    that this gives.

    Raises:
        ConfigError: The size is not positive, or not one that the architecture can take.
    """
    if requested is not None:
        size = [requested, requested]
    else:
        shape = cfg.get("TestReader", {}).get("inputs_def", {}).get("image_shape") or []
        size = list(shape[-2:])
        if len(size) != 2 or min(size) < 1:
            size = _padded_target(cfg.get("EvalReader") or {}) or [608, 608]
    height, width = (int(side) for side in size)
    stride = STRIDES.get(cfg.get("architecture"), 1)
    if min(height, width) < stride or height % stride or width % stride:
        expected = "at least 1x1" if stride == 1 else _nearest_multiples((height, width), stride)
        raise ConfigError(f"image size {height}x{width} is not valid; expected {expected}")
    return height, width


def _nearest_multiples(size_hw: tuple[int, int], stride: int) -> str:
    """What to expect instead of a size: multiples of a stride, with the nearest size."""
    nearest = "x".join(str(max(1, round(side / stride)) * stride) for side in size_hw)
    return f"multiples of {stride} pixels, such as {nearest}"


def _padded_target(reader: Mapping[str, Any]) -> list[int] | None:
    """The size that a reader resizes to, rounded up as its ``PadBatch`` does."""
    size = _resize_target(reader)
    for transform in reader.get("batch_transforms") or []:
        stride = (transform.get("PadBatch") or {}).get("pad_to_stride", 0)
        if size and stride > 0:
            size = [-(-side // stride) * stride for side in size]
    return size


def _resize_target(reader: Mapping[str, Any]) -> list[int] | None:
    for transform in reader.get("sample_transforms") or []:
        if "Resize" in transform:
            target = transform["Resize"].get("target_size")
            return [target, target] if isinstance(target, int) else list(target)
    return None
