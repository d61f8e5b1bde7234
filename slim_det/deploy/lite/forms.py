"""Writes a detector as a program for Paddle-Lite's converter."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import paddle

from slim_det.compress.quantize.model import program_ranges
from slim_det.compress.quantize.record import record_of
from slim_det.core.errors import ConfigError
from slim_det.deploy.predictor import MODEL_FILE, PARAMS_FILE
from slim_det.deploy.preprocessing import deployed_program, fused_normalization
from slim_det.detectors.fixed_size import at_any_size
from slim_det.detectors.image_size import has_open_size, image_size_hw
from slim_det.graph.folding import fold_batch_norm
from slim_det.graph.int8_program import ENGINE_BITS
from slim_det.graph.lite_program import (
    write_lite_int8,
    write_out_hard_swish,
    write_out_leaky_relu,
)
from slim_det.graph.normalization import Normalization
from slim_det.graph.operators import result_of
from slim_det.graph.program import DeployProgram
from slim_det.graph.trace import trace_detector

ONE_SIZE = "a file for Paddle-Lite is for images of one size, and TestReader keeps their ratio"
"""Why there is none for some detectors."""

SURROGATE_BITS = 7
"""Paddle-Lite's x86 kernels add two products in 16 bits, which overflows for 8-bit weights."""

SURROGATE_STEPS = (128, 256)
"""In pixels, for detectors whose coarsest stride is 32 or 64: every map needs a multiple of 16
values, because the x86 kernels process 16 at a time and miscompute a remainder."""
_VALUES = 16


def lite_form(
    model: paddle.nn.Layer, cfg: Any, artifact_dir: str | Path
) -> tuple[str, Callable[[Path], None]]:
    """The form in which Paddle-Lite's converter reads a detector.

    Args:
        model: The model that was exported.
        cfg: ppdet's configuration.
        artifact_dir: Folder of the artifact.

    Returns:
        ``float32`` or ``int8_in_float32``, and a function that writes the program to a path
        without suffix; a float program is copied from the artifact.

    Raises:
        ConfigError: Images have many sizes (see `require_one_size`).
    """
    require_one_size(cfg)
    if record_of(model) is not None:
        size_hw, inside = image_size_hw(cfg), fused_normalization(cfg)
        return "int8_in_float32", lambda stem: lite_program(model, size_hw, inside).save(stem)

    def copy(stem: Path) -> None:
        for name in (MODEL_FILE, PARAMS_FILE):
            shutil.copyfile(Path(artifact_dir) / name, stem.with_suffix(Path(name).suffix))

    return "float32", copy


def require_one_size(cfg: Any) -> None:
    """Raise ConfigError if images keep their ratio: a file for Paddle-Lite is for one size."""
    if has_open_size(cfg):
        raise ConfigError(f"{ONE_SIZE}; expected keep_ratio: false in TestReader's Resize")


def lite_program(
    model: paddle.nn.Layer,
    image_size_hw: tuple[int, int],
    normalization: Normalization | None,
    weight_bits: int = ENGINE_BITS,
) -> DeployProgram:
    """Program of a quantized detector with batch norm folded and Paddle-Lite's int8 operators.

    Args:
        model: A quantized detector.
        image_size_hw: Height and width in pixels.
        normalization: What the program does to images first.
        weight_bits: Largest bit width of the integer weights.
    """
    program = deployed_program(model, image_size_hw, normalization)
    fold_batch_norm(program)
    write_lite_int8(program, program_ranges(model), weight_bits)
    return program


def surrogate_size(
    model: paddle.nn.Layer, image_size_hw: tuple[int, int]
) -> tuple[int, int] | None:
    """The least size, from that of the images up, that Paddle-Lite computes correctly on x86.

    Args:
        model: A detector.
        image_size_hw: Height and width in pixels.

    Returns:
        Height and width in pixels; None if some maps have no multiple of 16 values at any of the
        sizes that are tried.
    """
    for step in SURROGATE_STEPS:
        height, width = (-(-side // step) * step for side in image_size_hw)
        with at_any_size(model):
            trace = trace_detector(model, (height, width))
        maps = [trace.shapes[result_of(op)][2:] for op in trace.convolutions]
        if not any(math.prod(sides) % _VALUES for sides in maps if sides != (1, 1)):
            return height, width
    return None


def lite_surrogate(
    model: paddle.nn.Layer, image_size_hw: tuple[int, int], normalization: Normalization | None
) -> DeployProgram:
    """The x86 surrogate: `lite_program` with 7-bit weights and decomposed activations.

    x86 computes it correctly, so it replaces the shipped program where there is no ARM device. It
    has the same conversion, scales and operators.

    Args:
        model: A quantized detector.
        image_size_hw: Height and width in pixels, from `surrogate_size`.
        normalization: What the program does to images first.
    """
    with at_any_size(model):
        program = lite_program(model, image_size_hw, normalization, SURROGATE_BITS)
    write_out_leaky_relu(program)
    write_out_hard_swish(program)
    return program
