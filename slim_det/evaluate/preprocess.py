"""Prepares images by an artifact's `infer_cfg.yml`, like PaddleDetection's deploy code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from ppdet.data.transform import operators

from slim_det.core.errors import DataError, ExportError, nearest, reason_of
from slim_det.detectors.image_size import sizes_vary

INPUTS = ("image", "im_shape", "scale_factor")

STEPS = ("Resize", "WarpAffine", "NormalizeImage", "Permute", "Pad")
"""Steps that are ppdet's operators of the same name."""


class ArtifactReader:
    """Reads and prepares image files for an artifact.

    Whatever runs an artifact reads its images here. The file is decoded to RGB, then the steps of
    ``Preprocess`` are applied in order.

    Args:
        settings: Content of ``infer_cfg.yml`` (see `slim_det.deploy.predictor.infer_settings`).

    Attributes:
        sizes_vary: Whether each image can have another size.

    Raises:
        ExportError: A step is unknown or has invalid settings.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self._steps = [("Decode", operators.Decode().apply)]
        self._steps += [(str(entry.get("type")), _step(entry)) for entry in settings["Preprocess"]]
        steps = [{str(entry.get("type")): entry} for entry in settings["Preprocess"]]
        self.sizes_vary = sizes_vary(steps)

    def __call__(self, path: str) -> dict[str, np.ndarray]:
        """Read one image.

        Returns:
            ``image`` float32 [1, 3, H, W], ``im_shape`` (of the prepared image) and
            ``scale_factor`` (prepared over original size) float32 [1, 2], height first.

        Raises:
            DataError: The file cannot be read, or a step fails.
        """
        sample = self.prepare({"im_file": path})
        return {key: np.asarray(sample[key], np.float32)[None] for key in INPUTS}

    def prepare(self, sample: dict[str, Any]) -> dict[str, Any]:
        """Read the image of one of ppdet's samples, and scale its boxes with it; see `__call__`."""
        path = sample["im_file"]
        for name, step in self._steps:
            try:
                sample = step(sample)
            except Exception as error:  # a damaged image lets steps raise errors of any kind
                reason = reason_of(error)
                raise DataError(f"'{path}' cannot be read: {name} fails ({reason})") from error
        return {**sample, "image": np.asarray(sample["image"], np.float32)}

    def batches(self, images: list[str]) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
        """Read images one at a time; yields path and batch."""
        return ((path, self(path)) for path in images)


def at_size(settings: dict[str, Any], image_size_hw: tuple[int, int]) -> dict[str, Any]:
    """Settings of ``infer_cfg.yml`` with another height and width in pixels."""
    height, width = image_size_hw
    sizes: dict[Any, dict[str, Any]] = {
        "Resize": {"target_size": [height, width]},
        "Pad": {"size": [height, width]},
        "WarpAffine": {"input_h": height, "input_w": width},
    }
    steps = [{**step, **sizes.get(step.get("type"), {})} for step in settings["Preprocess"]]
    return {**settings, "Preprocess": steps}


def _step(entry: dict[str, Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The function for one entry of ``Preprocess``."""
    settings = dict(entry)
    kind = settings.pop("type", None)
    if kind == "PadStride":
        stride = settings.get("stride", 0)
        return lambda sample: {**sample, "image": pad_to_stride(sample["image"], stride)}
    if kind not in STEPS:
        raise ExportError(
            f"infer_cfg.yml: unknown step '{kind}'{nearest(str(kind), [*STEPS, 'PadStride'])}"
        )
    try:
        operator = getattr(operators, kind)(**settings)
    except (TypeError, ValueError) as error:
        raise ExportError(f"infer_cfg.yml: step '{kind}' has invalid settings: {error}") from error
    return lambda sample: operator.apply(sample)


def pad_to_stride(image: np.ndarray, stride: int) -> np.ndarray:
    """Zero-pad an image [C, H, W] at the right and bottom to a multiple of ``stride`` pixels."""
    if stride <= 0:
        return image
    rows, columns = (-side % stride for side in image.shape[1:])
    return np.pad(image, ((0, 0), (0, rows), (0, columns)))
