"""Runs an exported model through Paddle Inference with the settings that make it fast."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import yaml

from slim_det.core.errors import ExportError
from slim_det.core.files import sha256_of
from slim_det.evaluate.detections import Detections, parse_arrays
from slim_det.graph.engine import INT8_INSTRUCTIONS, Engine, cpu_has_int8
from slim_det.graph.int8_program import for_kernels
from slim_det.graph.program import DeployProgram

logger = logging.getLogger("slim_det")

MODEL_FILE = "model.pdmodel"
PARAMS_FILE = "model.pdiparams"
INFER_CFG = "infer_cfg.yml"
MANIFEST_FILE = "slim_det.json"
PREDICTOR_FILES = (MODEL_FILE, PARAMS_FILE, INFER_CFG)

_STEM = "model"


class Predictor:
    """An exported detector.

    Args:
        folder: Folder with ``model.pdmodel``, ``model.pdiparams`` and ``infer_cfg.yml``; the
            engine's settings are in ``slim_det.json``, where there is one.
        threads: CPU threads; default all cores.

    Attributes:
        folder: The folder.
        precision: ``int8`` or ``float32``, of the kernels: an int8 model is run in float, with
            its rounded weights, where the CPU has no int8 instructions.
        settings: Of ``infer_cfg.yml``.

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
        wanted = _runs_int8(self.folder)
        int8 = wanted and cpu_has_int8()
        self.precision = "int8" if int8 else "float32"
        stem = self.folder / _STEM
        if wanted and not int8:
            self._engine = _float_engine(stem, threads)
        else:
            self._engine = Engine(stem, threads, int8)
        self.settings = infer_settings(self.folder)

    @property
    def image_size_hw(self) -> tuple[int, int]:
        """Height and width that images are resized to, from the reader's settings."""
        for step in self.settings["Preprocess"]:
            if step["type"] == "Resize":
                height, width = step["target_size"]
                return int(height), int(width)
        raise ExportError(f"artifact '{self.folder}': {INFER_CFG} has no Resize")

    def __call__(self, batch: dict[str, Any]) -> list[Detections]:
        """Detect on one batch.

        Args:
            batch: ``image`` float32 [B, 3, H, W], ``im_shape`` and ``scale_factor`` float32
                [B, 2], as ppdet's readers give them.

        Returns:
            What is found in each image.

        Raises:
            ExportError: The model gives no boxes.
        """
        return parse_arrays(self._engine(batch).values(), f"artifact '{self.folder}'")


def network_engine(program: DeployProgram, int8: bool, threads: int | None = None) -> Engine | None:
    """An engine for a detector's raw outputs alone, without decoding and NMS.

    Args:
        program: An artifact's program.
        int8: Whether int8 kernels are used.
        threads: CPU threads; default all cores.

    Returns:
        Its input is ``image``; None for a program whose boxes are all that it gives.
    """
    if not program.raw_outputs:
        return None
    return program.engine(["image"], program.raw_outputs, threads=threads, int8=int8)


def _runs_int8(folder: Path) -> bool:
    """Whether the model is to be run with int8 kernels; what was exported must be unchanged.

    Paddle may crash on a damaged file, so its checksum is compared first.
    """
    path = folder / MANIFEST_FILE
    if not path.is_file():
        return False
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        checksums = manifest["sha256"]
        changed = [n for n in (MODEL_FILE, PARAMS_FILE) if sha256_of(folder / n) != checksums[n]]
        int8 = manifest.get("engine", {}).get("int8", False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExportError(f"'{path}' cannot be read: {error!r}") from error
    if changed:
        raise ExportError(
            f"artifact '{folder}': {changed[0]} is not the file that was exported (its SHA-256 is "
            f"not the one in {MANIFEST_FILE}); export again"
        )
    return bool(int8)


def _float_engine(stem: Path, threads: int | None) -> Engine:
    """An engine for the same network in float."""
    logger.info(
        "this CPU has no int8 instructions (%s): '%s' runs in float",
        ", ".join(INT8_INSTRUCTIONS),
        stem.parent,
    )
    return for_kernels(DeployProgram.load(stem), int8=False).engine(threads=threads)


def infer_settings(folder: str | Path) -> dict[str, Any]:
    """Read ``infer_cfg.yml`` of an exported model.

    Raises:
        ExportError: It is missing or not what PaddleDetection's deploy code reads.
    """
    path = Path(folder) / INFER_CFG
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        settings["Preprocess"], settings["label_list"]
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise ExportError(f"'{path}' cannot be read: {error}") from error
    return dict(settings)
