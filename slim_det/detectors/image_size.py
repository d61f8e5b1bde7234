"""The size of the image that a detector is evaluated and deployed at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from slim_det.core.errors import ConfigError

USUAL_STRIDE = 32
STRIDES = {"YOLOv3": USUAL_STRIDE, "BlazeFace": 16}
"""Architecture -> what height and width must be multiples of, where it decodes boxes by its grid.

Elsewhere a size is valid if the model runs at it.
"""

ANY_SIZE_ARCHITECTURES = ("BlazeFace",)
"""Detectors that accept images of any size."""

OPEN_HW = (-1, -1)
"""Height and width of a program for images of any size."""


def image_size_hw(cfg: Any, requested: int | None = None) -> tuple[int, int]:
    """Height and width in pixels at which a detector is evaluated and deployed.

    Args:
        cfg: ppdet's configuration.
        requested: ``--image_size``, a side of a square that overrides the configuration.

    Where images keep their ratio (see `has_open_size`), it is the largest size that they can have,
    padded: costs and latencies are those of this size.

    Raises:
        ConfigError: The size is not positive, or not one that the architecture can take.
    """
    size: list[int] | None
    if requested is not None:
        size = [requested, requested]
    else:
        test, evaluated = (cfg.get(name) or {} for name in ("TestReader", "EvalReader"))
        if has_open_size(cfg):
            size = _padded(_given_size(test) or _resize_target(test), test)
        else:
            size = _given_size(test) or _padded(_resize_target(evaluated), evaluated)
    height, width = (int(side) for side in size or [608, 608])
    stride = STRIDES.get(cfg.get("architecture"), 1)
    if min(height, width) < stride or height % stride or width % stride:
        expected = "at least 1x1" if stride == 1 else _nearest_multiples((height, width), stride)
        raise ConfigError(f"image size {height}x{width} is not valid; expected {expected}")
    return height, width


def sizes_vary(steps: Sequence[Mapping[str, Any]]) -> bool:
    """Whether images keep their ratio or size in a reader's steps, so that each can have another.

    Images that are padded to one size have one.
    """
    kept = (("Resize", "keep_ratio"), ("WarpAffine", "keep_res"))
    varied = any((step.get(name) or {}).get(key) for step in steps for name, key in kept)
    return varied and not any("Pad" in step for step in steps)


def with_size(steps: Sequence[Any], size_hw: tuple[int, int]) -> list[Any]:
    """A reader's steps with another size in every ``Resize`` and ``WarpAffine``."""
    height, width = size_hw
    sizes: dict[str, dict[str, Any]] = {
        "Resize": {"target_size": [height, width]},
        "WarpAffine": {"input_h": height, "input_w": width},
    }
    return [
        {
            name: {**(settings or {}), **sizes[name]} if name in sizes else settings
            for name, settings in step.items()
        }
        for step in steps
    ]


def has_open_size(cfg: Any) -> bool:
    """Whether ``TestReader`` gives images of many sizes; a program for them leaves it open."""
    return sizes_vary((cfg.get("TestReader") or {}).get("sample_transforms") or [])


def target_size_hw(cfg: Any) -> tuple[int, int]:
    """Height and width that ``TestReader`` resizes to when a detector is deployed.

    It is the size of the image, unless images keep their ratio: then they are resized to fit into
    it, and padded. It says nothing of images that are not resized.
    """
    test = cfg.get("TestReader") or {}
    size = (_given_size(test) or _resize_target(test)) if has_open_size(cfg) else None
    height, width = size or image_size_hw(cfg)
    return int(height), int(width)


def program_size_hw(cfg: Any) -> tuple[int, int]:
    """Height and width of images that a deployed program takes; `OPEN_HW` for any."""
    return OPEN_HW if has_open_size(cfg) else image_size_hw(cfg)


def _nearest_multiples(size_hw: tuple[int, int], stride: int) -> str:
    """What to expect instead of a size: multiples of a stride, with the nearest size."""
    nearest = "x".join(str(max(1, round(side / stride)) * stride) for side in size_hw)
    return f"multiples of {stride} pixels, such as {nearest}"


def _given_size(reader: Mapping[str, Any]) -> list[int] | None:
    """Height and width of ``inputs_def.image_shape``, if both are given."""
    size = list((reader.get("inputs_def") or {}).get("image_shape") or [])[-2:]
    return size if len(size) == 2 and min(size) > 0 else None


def _padded(size: list[int] | None, reader: Mapping[str, Any]) -> list[int] | None:
    """A size, rounded up as a reader's ``PadBatch`` does."""
    for transform in reader.get("batch_transforms") or []:
        stride = (transform.get("PadBatch") or {}).get("pad_to_stride", 0)
        if size and stride > 0:
            size = [-(-side // stride) * stride for side in size]
    return size


def _resize_target(reader: Mapping[str, Any]) -> list[int] | None:
    for transform in reader.get("sample_transforms") or []:
        if transform.get("Resize"):
            target = transform["Resize"].get("target_size")
            return [target, target] if isinstance(target, int) else list(target)
    return None
