"""Writes a detector as a program for Paddle-Lite's converter."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import paddle

from slim_det.compress.quantize.model import program_ranges
from slim_det.compress.quantize.record import record_of
from slim_det.deploy.predictor import MODEL_FILE, PARAMS_FILE
from slim_det.deploy.preprocessing import deployed_program, fused_normalization
from slim_det.detectors.fixed_size import at_any_size
from slim_det.detectors.image_size import image_size_hw
from slim_det.graph.folding import fold_batch_norm
from slim_det.graph.int8_program import ENGINE_BITS
from slim_det.graph.lite_program import (
    write_lite_int8,
    write_out_hard_swish,
    write_out_leaky_relu,
)
from slim_det.graph.normalization import Normalization
from slim_det.graph.program import DeployProgram

SURROGATE_BITS = 7
"""Paddle-Lite's x86 kernels add two products in 16 bits, which overflows for 8-bit weights."""

SURROGATE_STEP = 128
"""In pixels. The x86 kernels process 16 values at a time and miscompute a remainder, so every
feature map needs a multiple of 16 values: at stride 32, sides that are multiples of 4."""


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
    """
    if record_of(model) is not None:
        size_hw, inside = image_size_hw(cfg), fused_normalization(cfg)
        return "int8_in_float32", lambda stem: lite_program(model, size_hw, inside).save(stem)

    def copy(stem: Path) -> None:
        for name in (MODEL_FILE, PARAMS_FILE):
            shutil.copyfile(Path(artifact_dir) / name, stem.with_suffix(Path(name).suffix))

    return "float32", copy


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


def surrogate_size(image_size_hw: tuple[int, int]) -> tuple[int, int]:
    """Round height and width in pixels up to a size that Paddle-Lite computes correctly on x86."""
    height, width = (-(-side // SURROGATE_STEP) * SURROGATE_STEP for side in image_size_hw)
    return height, width


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
