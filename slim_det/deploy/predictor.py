"""Runs an artifact in Paddle Inference, with the settings that make it fast."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import yaml
from pydantic import AfterValidator, Field, StrictStr
from typing_extensions import TypeGuard

from slim_det.core.errors import ExportError, one_line
from slim_det.core.files import sha256_of
from slim_det.core.schema import validated
from slim_det.evaluate.detections import Detections, parse_arrays
from slim_det.evaluate.preprocess import ArtifactReader
from slim_det.graph.engine import INT8_INSTRUCTIONS, NO_INT8, Engine, cpu_has_int8
from slim_det.graph.int8_program import for_kernels
from slim_det.graph.program import DeployProgram

logger = logging.getLogger("slim_det")

MODEL_FILE = "model.pdmodel"
PARAMS_FILE = "model.pdiparams"
INFER_CFG = "infer_cfg.yml"
MANIFEST_FILE = "slim_det.json"
_BOX_OUTPUTS = 2
_MASK_AXES = 3
PREDICTOR_FILES = (MODEL_FILE, PARAMS_FILE, INFER_CFG)


def _checked_step(step: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(step.get("type"), str):
        raise ValueError(f"a step has no type: {step!r:.60}")
    if step["type"] == "Resize":
        sides = step.get("target_size")
        if not (isinstance(sides, list) and len(sides) == 2 and all(map(_is_side, sides))):
            raise ValueError(f"Resize: target_size {sides!r} is not [height, width] in pixels")
    if step["type"] == "NormalizeImage":
        mean, std = step.get("mean"), step.get("std")
        if not (_are_numbers(mean) and _are_numbers(std) and 0 not in std):
            raise ValueError(
                f"NormalizeImage: mean {mean!r} and std {std!r} are not finite numbers, or 0"
            )
    return step


def _are_numbers(values: Any) -> TypeGuard[list[float]]:
    return isinstance(values, list) and all(
        isinstance(value, (int, float)) and math.isfinite(value) for value in values
    )


def _is_side(value: Any) -> bool:
    return type(value) is int and value > 0


@dataclass
class _InferSettings:
    """What an artifact needs of ``infer_cfg.yml``."""

    Preprocess: Annotated[
        list[Annotated[dict[str, Any], AfterValidator(_checked_step)]],
        Field(description="a list of steps, each with its type"),
    ]
    label_list: Annotated[list[StrictStr], Field(description="a list of class names")]


class Predictor:
    """An exported detector.

    Args:
        folder: Folder with ``model.pdmodel``, ``model.pdiparams`` and ``infer_cfg.yml``; engine
            settings are read from ``slim_det.json`` if it exists.
        threads: Number of CPU threads; by default all cores.

    Attributes:
        folder: The folder.
        precision: Precision of the kernels, ``int8`` or ``float32``. An int8 model is run in
            float, with its rounded weights, if oneDNN has no int8 instructions.
        settings: Content of ``infer_cfg.yml``.

    Raises:
        ExportError: A file is missing or damaged, or the model cannot be loaded.
    """

    def __init__(self, folder: str | Path, threads: int | None = None) -> None:
        self.folder = Path(folder)
        for name in PREDICTOR_FILES:
            if not (self.folder / name).is_file():
                raise ExportError(
                    f"artifact '{folder}' has no {name}; expected a folder written by export"
                )
        is_int8 = _is_int8(self.folder)
        self.precision = "int8" if is_int8 and cpu_has_int8() else "float32"
        stem = self.folder / Path(MODEL_FILE).stem
        if is_int8 and self.precision == "float32":
            self._engine = _float_engine(stem, threads)
        else:
            self._engine = Engine(stem, threads, is_int8)
        self.settings = infer_settings(self.folder)

    @cached_property
    def reader(self) -> ArtifactReader:
        """Prepares images for it, as ``infer_cfg.yml`` says."""
        return ArtifactReader(self.settings)

    @property
    def image_size_hw(self) -> tuple[int, int]:
        """Height and width in pixels that images are resized to, from ``infer_cfg.yml``.

        Images that keep their ratio are resized to fit into it; those that keep their size are not.
        """
        for step in self.settings["Preprocess"]:
            if step["type"] == "Resize":
                height, width = step["target_size"]
                return int(height), int(width)
            if step["type"] == "WarpAffine":
                return int(step.get("input_h", 512)), int(step.get("input_w", 512))
        raise ExportError(f"artifact '{self.folder}': {INFER_CFG} has no Resize")

    @property
    def largest_size_hw(self) -> tuple[int, int]:
        """Height and width in pixels of the largest image that the reader gives, with padding."""
        height, width = self.image_size_hw
        for step in self.settings["Preprocess"]:
            stride = step.get("stride", 0) if step["type"] == "PadStride" else 0
            if stride > 0:
                height, width = (-(-side // stride) * stride for side in (height, width))
        return height, width

    def __call__(self, batch: dict[str, Any]) -> list[Detections]:
        """Detections of each image of a batch.

        Args:
            batch: ``image`` float32 [B, 3, H, W], ``im_shape`` and ``scale_factor`` float32 [B, 2],
                prepared by its `reader`.

        Raises:
            ExportError: The model outputs no boxes.
        """
        return boxes_of(self._engine, batch, f"artifact '{self.folder}'")

    def masks(self, batch: dict[str, Any]) -> np.ndarray | None:
        """Masks of the boxes of one image, int32 [n, height, width]; None if it has no masks."""
        if len(self._engine.outputs) <= _BOX_OUTPUTS:
            return None
        return next((one for one in self._engine(batch).values() if one.ndim == _MASK_AXES), None)


def boxes_of(engine: Engine, batch: dict[str, Any], source: str) -> list[Detections]:
    """Detections of each image of a batch; a program for one image runs once for each.

    Args:
        engine: A detector from image to boxes.
        batch: As of `Predictor`.
        source: Where it is from, for the error message.
    """
    images = len(batch["image"])
    if engine.batch != 1 or images == 1:
        return parse_arrays(engine(batch).values(), source)
    arrays = {name: np.asarray(batch[name]) for name in engine.inputs}
    parts = (
        {name: array[place : place + 1] for name, array in arrays.items()}
        for place in range(images)
    )
    return [found for part in parts for found in parse_arrays(engine(part).values(), source)]


def network_engine(program: DeployProgram, int8: bool, threads: int | None = None) -> Engine | None:
    """Create an engine that computes only a detector's raw outputs, without decoding and NMS.

    Its input is ``image``. None if the program has no raw outputs. See `Engine` for the settings.
    """
    if not program.raw_outputs:
        return None
    return program.engine(["image"], program.raw_outputs, threads=threads, int8=int8)


def _is_int8(folder: Path) -> bool:
    """Whether the model is made for int8 kernels, after checking that its files are unchanged.

    Paddle may crash on a damaged file, so the checksums are compared first.
    """
    path = folder / MANIFEST_FILE
    if not path.is_file():
        return False
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        checksums, int8 = manifest["sha256"], manifest.get("engine", {}).get("int8", False)
        changed = [n for n in PREDICTOR_FILES if sha256_of(folder / n) != checksums[n]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExportError(f"'{path}' cannot be read: {error!r}") from error
    if changed:
        raise ExportError(
            f"artifact '{folder}': {changed[0]} is not the file that was exported (its SHA-256 is "
            f"not the one in {MANIFEST_FILE}); export again"
        )
    return bool(int8)


def _float_engine(stem: Path, threads: int | None) -> Engine:
    """Create an engine that runs an int8 model in float."""
    logger.info(
        "'%s' runs in float: %s; expected one of %s",
        stem.parent,
        NO_INT8,
        ", ".join(INT8_INSTRUCTIONS),
    )
    return for_kernels(DeployProgram.load(stem), int8=False).engine(threads=threads)


def infer_settings(folder: str | Path) -> dict[str, Any]:
    """Read ``infer_cfg.yml`` of an exported model; ExportError if it is missing or malformed."""
    path = Path(folder) / INFER_CFG
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, ValueError) as error:
        raise ExportError(f"'{path}' cannot be read: {one_line(error)}") from error
    if not isinstance(settings, dict):
        raise ExportError(f"'{path}' cannot be read: expected keys, found {settings!r:.60}")
    validated(_InferSettings, settings, f"'{path}': ", ExportError)
    return settings
