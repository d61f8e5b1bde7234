"""Checks that an artifact must pass before it is published."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import paddle

from slim_det.core.errors import ExportError
from slim_det.deploy.predictor import MODEL_FILE, PARAMS_FILE, Predictor, network_engine
from slim_det.evaluate.box_agreement import BoxAgreement, compare_boxes
from slim_det.evaluate.detections import Detections
from slim_det.evaluate.evaluation import dygraph_predictor
from slim_det.evaluate.images import image_batches
from slim_det.evaluate.mask_agreement import MASK_TOLERANCE, mask_difference
from slim_det.evaluate.tensor_agreement import compare_tensors
from slim_det.graph.activations import ActivationRecorder, output_array
from slim_det.graph.int8_program import float_layers, int8_layers
from slim_det.graph.program import DeployProgram, head_convolutions
from slim_det.graph.trace import trace_detector

_STEM = Path(MODEL_FILE).stem
FLOAT_COSINE = 0.99999
"""Least cosine similarity between a raw output of a float artifact and the model's."""

_HEADER_BYTES = 256
"""Upper limit of one tensor's header in the parameters file."""


def check_parameters(
    model: paddle.nn.Layer, folder: Path, image_size_hw: tuple[int, int], folded: bool = False
) -> None:
    """Check that the file holds exactly the parameters of a float model, with their shapes.

    Parameters that only a training reads, such as the scales of PicoDet's boxes, are not in it.

    Args:
        model: The float model.
        folder: Folder of the artifact.
        image_size_hw: Height and width at which the model runs.
        folded: Whether batch norms, whose parameters are vectors, may be part of convolutions.

    Raises:
        ExportError: A parameter is missing or has another shape, or the file size is wrong.
    """
    program = DeployProgram.load(folder / _STEM)
    known = program.block.vars
    expected = [p for p in model.parameters() if not folded or p.ndim > 1 or p.name in known]
    if any(p.name not in known for p in expected):
        operators = trace_detector(model, image_size_hw).ops
        read = {name for op in operators for name in op.input_arg_names}
        expected = [p for p in expected if p.name in known or p.name in read]
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


def check_outputs(
    model: paddle.nn.Layer, cfg: Any, folder: Path, images: list[str]
) -> tuple[BoxAgreement, int]:
    """Compare raw outputs, boxes and masks of a float model and its artifact on real images.

    ``TestReader`` prepares the images of the model, and ``infer_cfg.yml`` those of the artifact. If
    images keep their ratio, the first one is also compared turned by a right angle, so that the
    program has run at two sizes.

    Returns:
        The agreement of the boxes over all images, and the number of images.

    Raises:
        ExportError: Raw outputs or masks differ, or a box has no partner.
    """
    deployed, trained = Predictor(folder), dygraph_predictor(model)
    program = DeployProgram.load(folder / _STEM)
    network, heads = network_engine(program, int8=False), _head_paths(model, program)
    modules = dict(model.named_sublayers())
    recorder = ActivationRecorder({path: modules[path] for path in heads}, output_array)
    agreements = []
    results: list[Any] = []
    with (
        _last_result(model, results),
        _turned(images[:1] if deployed.reader.sizes_vary else []) as more,
    ):
        for path, batch in image_batches(cfg, [*images, *more], deployed.image_size_hw):
            own = deployed.reader(path)
            with recorder.recording() as kept:
                boxes = trained(dict(batch))
                calls = {head: iter(outputs) for head, outputs in kept.items()}
                expected = [next(calls[head]) for head in heads]
            raw = compare_tensors(list(network(own).values()) if network else [], expected)
            if raw.fault or raw.cosine < FLOAT_COSINE:
                reason = raw.fault or f"cosine {raw.cosine:.6f}, expected at least {FLOAT_COSINE}"
                raise ExportError(f"the exported model has other raw outputs on '{path}': {reason}")
            agreement = compare_boxes(*deployed(own), *boxes)
            if not agreement.passed:
                raise ExportError(f"the exported model finds other boxes on '{path}': {agreement}")
            _check_masks(deployed, own, boxes[0], results[-1], path)
            agreements.append(agreement)
    return BoxAgreement.of_images(agreements), len(agreements)


@contextlib.contextmanager
def _last_result(model: paddle.nn.Layer, kept: list[Any]) -> Iterator[None]:
    """Keep what a model returns last."""

    def keep(layer: paddle.nn.Layer, inputs: Any, found: Any) -> None:
        kept[:] = [found]

    handle = model.register_forward_post_hook(keep)
    try:
        yield
    finally:
        handle.remove()


def _check_masks(
    deployed: Predictor, own: dict[str, Any], boxes: Detections, outputs: Any, path: str
) -> None:
    """Compare the masks of a detector that has them; its boxes agree."""
    masks, expected = deployed.masks(own), outputs.get("mask")
    if masks is None and expected is None:
        return
    if masks is None or expected is None:
        raise ExportError("only one of the model and the exported model has masks")
    apart = mask_difference(deployed(own)[0], masks, boxes, np.asarray(expected))
    if apart > MASK_TOLERANCE:
        raise ExportError(
            f"the exported model finds other masks on '{path}': {apart:.1%} of their pixels "
            f"differ, expected at most {MASK_TOLERANCE:.0%}"
        )


@contextlib.contextmanager
def _turned(images: list[str]) -> Iterator[list[str]]:
    """Files with copies of images that are turned by a right angle."""
    with tempfile.TemporaryDirectory(prefix="slim_det_turned_") as folder:
        files = []
        for number, path in enumerate(images):
            pixels = cv2.imread(path)
            if pixels is not None:  # otherwise whoever reads the images says so
                files.append(str(Path(folder) / f"{number}.png"))
                cv2.imwrite(files[-1], cv2.rotate(pixels, cv2.ROTATE_90_CLOCKWISE))
        yield files


def _head_paths(model: paddle.nn.Layer, program: DeployProgram) -> list[str]:
    """The module path of the layer that computes each raw output; one may compute several.

    It is the convolution, or the batch norm behind it.
    """
    paths = {param.name: name.rpartition(".")[0] for name, param in model.named_parameters()}
    heads = head_convolutions(program.ops)
    norms = [program.normalization(op) for op in heads]
    return [
        paths[norm.input("Scale") if norm else program.stored_weight(op)]
        for op, norm in zip(heads, norms)
    ]
