"""The manifest ``slim_det.json`` of an artifact: its content, origin and engine settings."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import paddle

from slim_det.compress.prune.plan import plan_of
from slim_det.compress.quantize.model import quantized_layers
from slim_det.compress.quantize.record import record_of
from slim_det.core.files import sha256_of, write_json
from slim_det.deploy.predictor import INFER_CFG, MANIFEST_FILE, MODEL_FILE, PARAMS_FILE
from slim_det.version import __version__

SCHEMA = "slim_det.artifact/1"

_PLAN_KEYS = ("fingerprint", "settings", "cost", "groups")
_PACKAGES = ("paddledet", "numpy", "opencv-python")


def write_manifest(
    model: paddle.nn.Layer,
    folder: Path,
    measured: Mapping[str, Any] | None = None,
    metric: Mapping[str, Any] | None = None,
) -> None:
    """Write ``slim_det.json`` of an exported model.

    Args:
        model: The model.
        folder: Folder of the artifact.
        measured: Measurements of the artifact.
        metric: AP of an int8 artifact and of its model; None if not measured.
    """
    plan, quantized = plan_of(model), record_of(model) is not None
    content = json.loads(plan.to_json()) if plan else None
    manifest = {
        "schema": SCHEMA,
        "slim_det": __version__,
        "paddle": paddle.__version__,
        "versions": _versions(),
        "precision": "int8" if quantized else "float32",
        "engine": {"name": "paddle_inference", "onednn": True, "int8": quantized},
        "measured": dict(measured or {}),
        "metric": dict(metric) if metric else None,
        "plan": {key: content[key] for key in _PLAN_KEYS} if content else None,
        "quantization": _quantization(model),
        "sha256": {name: sha256_of(folder / name) for name in (MODEL_FILE, PARAMS_FILE, INFER_CFG)},
    }
    write_json(folder / MANIFEST_FILE, manifest)


def _versions() -> dict[str, str]:
    """Versions of everything that affects the exported file or the preprocessing."""
    found = {
        "slim_det": __version__,
        "python": platform.python_version(),
        "paddle": paddle.__version__,
    }
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # not installed, but imported from a checkout
    return found


def _quantization(model: paddle.nn.Layer) -> dict[str, Any] | None:
    """Settings, origin and input ranges of a quantized model."""
    record = record_of(model)
    if record is None:
        return None
    layers = quantized_layers(model)
    return {
        "settings": record.settings.as_dict(),
        "origin": record.origin,
        "layers": len(record.layers),
        "layers_float": record.kept_float,
        "input_ranges": {name: layer.activation.range() for name, layer in layers.items()},
    }
