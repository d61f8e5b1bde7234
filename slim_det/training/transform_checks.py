"""Checks the transforms of readers by making them, and what their classes do not check."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ppdet.data import transform

from slim_det.core.errors import ConfigError, reason_of

TRANSFORMS = {name: kind for name, kind in vars(transform).items() if isinstance(kind, type)}
"""ppdet's transforms by name."""

_RANDOM_PREFIXES = ("Random", "BatchRandom", "MOTRandom", "KeyPointRandom")
_RANDOM = frozenset(
    """
    AugmentHSV AutoAugment CropWithDataAchorSampling CropWithSampling Cutmix GridMask Mixup Mosaic
    StrongAugImage
    """.split()
)
"""Transforms that draw random numbers, beside those whose name begins as above."""

_SIDE_EFFECTS = ("DecodeCache",)
"""Transforms that write something when they are made."""


def check_transform(where: str, name: str, settings: Mapping[str, Any], trains: bool) -> None:
    """Check a transform whose keys are known.

    Args:
        where: The list that it is in, such as ``EvalReader.sample_transforms``.
        name: Its class.
        settings: Its arguments.
        trains: Whether it is for a training, where images may differ each time.

    Raises:
        ConfigError: A value is not valid, or an evaluation would see other images each time.
    """
    if not trains and (name.startswith(_RANDOM_PREFIXES) or name in _RANDOM):
        raise ConfigError(
            f"{where}: {name} changes images at random; expected transforms that give the same "
            "image each time"
        )
    if name == "Resize":
        _check_resize(where, settings)
    if name == "NormalizeImage":
        _check_numbers(where, settings)
    if name not in _SIDE_EFFECTS:
        try:
            TRANSFORMS[name](**settings)
        except Exception as error:  # constructors check by assertions and by computing
            raise ConfigError(
                f"{where}: {name} rejects its settings ({reason_of(error)})"
            ) from error


def _check_resize(where: str, settings: Mapping[str, Any]) -> None:
    size = settings["target_size"]
    sides = size if isinstance(size, (list, tuple)) else [size, size]
    if len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):
        raise ConfigError(
            f"{where}: Resize.target_size: {size!r} is not valid; expected [height, width] in "
            "pixels, or one number"
        )
    if not isinstance(settings["keep_ratio"], bool):
        raise ConfigError(
            f"{where}: Resize.keep_ratio: {settings['keep_ratio']!r} is not valid; expected true "
            "or false"
        )


def _check_numbers(where: str, settings: Mapping[str, Any]) -> None:
    for key in ("mean", "std"):
        values = settings.get(key, [1.0])
        known = isinstance(values, (list, tuple)) and all(map(_is_finite, values))
        if not known or (key == "std" and 0 in values):
            rest = " above 0" if key == "std" else ""
            raise ConfigError(
                f"{where}: NormalizeImage.{key}: {values!r} is not valid; expected a list of "
                f"finite numbers{rest}, one for each channel"
            )


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
