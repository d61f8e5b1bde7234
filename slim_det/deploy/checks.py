"""Checks that an artifact must pass before it is published."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import paddle

from slim_det.core.errors import ExportError
from slim_det.deploy.predictor import MODEL_FILE, PARAMS_FILE, Predictor
from slim_det.evaluate.box_agreement import BoxAgreement, compare_boxes
from slim_det.evaluate.evaluation import dygraph_predictor
from slim_det.evaluate.images import image_batches
from slim_det.graph.int8_program import float_layers, int8_layers
from slim_det.graph.program import DeployProgram

_STEM = Path(MODEL_FILE).stem
_HEADER_BYTES = 256
"""Upper limit of one tensor's header in the parameters file."""


def check_parameters(model: paddle.nn.Layer, folder: Path) -> None:
    """Check that the file holds exactly the parameters of a float model, with their shapes.

    Raises:
        ExportError: A parameter is missing or has another shape, or the file size is wrong.
    """
    program = DeployProgram.load(folder / _STEM)
    found = {name: tuple(program.block.var(name).shape) for name in program.parameters}
    expected = {param.name: tuple(param.shape) for param in model.parameters()}
    for name in expected:
        if found.get(name) != expected[name]:
            raise ExportError(
                f"the exported model differs: parameter {name} is {found.get(name)} in the file "
                f"and {expected[name]} in the model"
            )
    _check_size(program, folder)


def check_integers(model: paddle.nn.Layer, folder: Path, quantized: Collection[str]) -> None:
    """Check that exactly the quantized convolutions are int8 in the file, with the model's shapes.

    Args:
        model: The quantized model.
        folder: Folder of the artifact.
        quantized: Names of the weights that must be int8.

    Raises:
        ExportError: A layer is float that should be int8, or vice versa; a weight has another
            shape, or the file size is wrong.
    """
    program = DeployProgram.load(folder / _STEM)
    integers, floats = set(int8_layers(program)), set(float_layers(program))
    names = {param.name: name for name, param in model.named_parameters()}
    for weight, wrong, found in (
        *((w, w not in integers, "float") for w in quantized),
        *((w, w in quantized, "float") for w in floats),
        *((w, w not in quantized, "int8") for w in integers),
    ):
        if wrong:
            other = "int8" if found == "float" else "float"
            raise ExportError(
                f"the exported model differs: '{names.get(weight, weight)}' is {found} in the "
                f"file and {other} in the model"
            )
    for param in model.parameters():
        if param.name in integers | floats:
            shape = tuple(program.block.var(param.name).shape)
            if shape != tuple(param.shape):
                raise ExportError(
                    f"the exported model differs: parameter {param.name} is {shape} in the file "
                    f"and {tuple(param.shape)} in the model"
                )
    _check_size(program, folder)


def _check_size(program: DeployProgram, folder: Path) -> None:
    """Check that the parameters file holds the program's tensors and nothing else."""
    arrays = [program.value(name) for name in program.parameters]
    expected = sum(array.nbytes for array in arrays)
    size = (folder / PARAMS_FILE).stat().st_size
    if not expected <= size <= expected + _HEADER_BYTES * len(arrays):
        raise ExportError(
            f"the exported parameters take {size} bytes, expected {expected} "
            f"for {len(arrays)} tensors"
        )


def check_boxes(
    model: paddle.nn.Layer, cfg: Any, deployed: Predictor, images: list[str]
) -> tuple[BoxAgreement, int]:
    """Compare the boxes of the model and its artifact on real images.

    Returns:
        The agreement over all images, and the number of images.

    Raises:
        ExportError: A box has no partner.
    """
    trained = dygraph_predictor(model)
    agreements = []
    for path, batch in image_batches(cfg, images):
        agreement = compare_boxes(*deployed(dict(batch)), *trained(dict(batch)))
        if not agreement.passed:
            raise ExportError(f"the exported model finds other boxes on '{path}': {agreement}")
        agreements.append(agreement)
    return BoxAgreement.of_images(agreements), len(agreements)
