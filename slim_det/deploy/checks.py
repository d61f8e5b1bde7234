"""Checks that an artifact must pass before it is published."""

from __future__ import annotations

from collections.abc import Collection, Iterable
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


def check_parameters(model: paddle.nn.Layer, folder: Path, folded: bool = False) -> None:
    """Check that the file holds exactly the parameters of a float model, with their shapes.

    Args:
        model: The float model.
        folder: Folder of the artifact.
        folded: Whether batch norms, whose parameters are vectors, may be part of convolutions.

    Raises:
        ExportError: A parameter is missing or has another shape, or the file size is wrong.
    """
    program = DeployProgram.load(folder / _STEM)
    known = program.block.vars
    expected = [p for p in model.parameters() if not folded or p.ndim > 1 or p.name in known]
    _check_tensors(program, expected, folder)


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
    integers, floats = int8_layers(program), float_layers(program)
    wrong_floats = [name for name in quantized if name in floats or name not in integers]
    wrong_integers = [name for name in integers if name not in quantized]
    paths = {param.name: path for path, param in model.named_parameters()}
    for wrong, found, expected in (
        (wrong_floats, "float", "int8"),
        (wrong_integers, "int8", "float"),
    ):
        if wrong:
            raise ExportError(
                f"the exported model differs: '{paths.get(wrong[0], wrong[0])}' is {found} in the "
                f"file and {expected} in the model"
            )
    weights = {*integers, *floats}
    _check_tensors(program, [p for p in model.parameters() if p.name in weights], folder)


def _check_tensors(program: DeployProgram, expected: Iterable[Any], folder: Path) -> None:
    """Check the shapes of parameters, and that the file holds the program's tensors only."""
    found = {name: tuple(program.block.var(name).shape) for name in program.parameters}
    for param in expected:
        if found.get(param.name) != tuple(param.shape):
            raise ExportError(
                f"the exported model differs: parameter {param.name} is {found.get(param.name)} "
                f"in the file and {tuple(param.shape)} in the model"
            )
    arrays = [program.value(name) for name in program.parameters]
    least = sum(array.nbytes for array in arrays)
    size = (folder / PARAMS_FILE).stat().st_size
    if not least <= size <= least + _HEADER_BYTES * len(arrays):
        raise ExportError(
            f"the exported parameters take {size} bytes, expected {least} for {len(arrays)} tensors"
        )


def check_boxes(
    model: paddle.nn.Layer, cfg: Any, deployed: Predictor, images: list[str]
) -> tuple[BoxAgreement, int]:
    """Compare the boxes of the model and its artifact on real images.

    ``TestReader`` prepares the images of the model, and ``infer_cfg.yml`` those of the artifact.

    Returns:
        The agreement over all images, and the number of images.

    Raises:
        ExportError: A box has no partner.
    """
    trained = dygraph_predictor(model)
    agreements = []
    for path, batch in image_batches(cfg, images, deployed.image_size_hw):
        agreement = compare_boxes(*deployed(deployed.reader(path)), *trained(dict(batch)))
        if not agreement.passed:
            raise ExportError(f"the exported model finds other boxes on '{path}': {agreement}")
        agreements.append(agreement)
    return BoxAgreement.of_images(agreements), len(agreements)
