"""The size of the image that a detector is evaluated and deployed at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slim_det.core.errors import ConfigError

DEFAULT_STRIDE = 32
COARSEST_STRIDE = {"BlazeFace": 16}
"""Stride of the coarsest feature map, where it is not `DEFAULT_STRIDE`."""

ANY_SIZE_ARCHITECTURES = ("BlazeFace",)
"""Detectors that accept images of any size."""


def image_size_hw(cfg: Any, requested: int | None = None) -> tuple[int, int]:
    """Height and width in pixels at which a detector is evaluated and deployed.

    Args:
        cfg: ppdet's configuration.
        requested: ``--image_size``, a side of a square that overrides the configuration.

    Raises:
        ConfigError: The size is not a positive multiple of the coarsest stride.
    """
    if requested is not None:
        size = [requested, requested]
    else:
        shape = cfg.get("TestReader", {}).get("inputs_def", {}).get("image_shape") or []
        size = list(shape[-2:])
        if len(size) != 2 or min(size) < 1:
            size = _resize_target(cfg.get("EvalReader", {})) or [608, 608]
    height, width = (int(side) for side in size)
    stride = COARSEST_STRIDE.get(cfg.get("architecture"), DEFAULT_STRIDE)
    if min(height, width) < stride or height % stride or width % stride:
        nearest = "x".join(str(max(1, round(side / stride)) * stride) for side in (height, width))
        raise ConfigError(
            f"image size {height}x{width} is not valid; expected multiples of {stride} pixels, "
            f"such as {nearest}"
        )
    return height, width


def _resize_target(reader: Mapping[str, Any]) -> list[int] | None:
    for transform in reader.get("sample_transforms") or []:
        if "Resize" in transform:
            target = transform["Resize"].get("target_size")
            return [target, target] if isinstance(target, int) else list(target)
    return None
