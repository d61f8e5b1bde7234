"""Finds the layer at which an int8 artifact begins to differ from the model that simulates it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import paddle

from slim_det.compress.quantize.quantizable_layers import convolution_of
from slim_det.compress.quantize.record import record_of
from slim_det.core.errors import ExportError
from slim_det.detectors.image_size import target_size_hw
from slim_det.evaluate.images import image_batches
from slim_det.evaluate.preprocess import ArtifactReader
from slim_det.evaluate.tensor_agreement import ErrorEnergy
from slim_det.graph.activations import ActivationRecorder, output_array
from slim_det.graph.engine import cpu_has_int8
from slim_det.graph.layer_names import layer_names
from slim_det.graph.program import DeployProgram

THRESHOLD = 0.05
"""Relative error up to which a layer is never blamed: engines round slightly differently."""

JUMP = 3.0
"""A faulty layer's error exceeds this multiple of every earlier layer's (errors accumulate)."""


@dataclass(frozen=True)
class Divergence:
    """The layer to inspect first.

    Attributes:
        name: Module path of the layer.
        error: Norm of the output difference over the norm of the model's output, over all images.
        jump: Whether its error exceeds `THRESHOLD` and `JUMP` times every earlier error. If no
            layer has such an error, this is the layer with the largest.
    """

    name: str
    error: float
    jump: bool

    def __str__(self) -> str:
        """A human-readable clause."""
        begin = "errors grow slowly from layer to layer, the largest is that of"
        if self.jump:
            begin = "the first layer that differs is"
        return f"{begin} '{self.name}' (relative error {self.error:.2f})"


def pick_layer(errors: Mapping[str, float]) -> Divergence:
    """Pick the first layer whose error jumps, otherwise the layer with the largest error.

    ``errors`` maps module paths to relative errors in execution order; it is not empty.
    """
    largest = 0.0
    for name, error in errors.items():
        if not error <= max(THRESHOLD, JUMP * largest):
            return Divergence(name, error, True)
        largest = max(largest, error)
    worst = max(errors, key=lambda name: errors[name])
    return Divergence(worst, errors[worst], False)


def first_divergence(
    model: paddle.nn.Layer, p: DeployProgram, cfg: Any, images: list[str], reader: ArtifactReader
) -> Divergence:
    """Compare every convolution's output in Paddle Inference with the model's.

    Args:
        model: A quantized model.
        p: Its int8 program (see `layer_errors`).
        cfg: ppdet's configuration; ``TestReader`` prepares the images of the model.
        images: Paths of image files.
        reader: Prepares the images of the program.

    Raises:
        ExportError: No convolution of the model is in the program.
    """
    prepared = image_batches(cfg, images, target_size_hw(cfg))
    errors = layer_errors(model, p, ((batch, reader(path)) for path, batch in prepared))
    if not errors:
        raise ExportError("the model and the program have no convolution in common")
    return pick_layer(errors)


def layer_errors(
    model: paddle.nn.Layer,
    p: DeployProgram,
    batches: Iterable[tuple[dict[str, Any], dict[str, Any]]],
) -> dict[str, float]:
    """Relative error of every convolution's output, after its batch norm or bias.

    Float convolutions with batch norm are left out: the record does not name their batch norm, and
    their errors show up in the next layer.

    Args:
        model: A quantized model.
        p: Its int8 program, batch norm folded.
        batches: The same images, prepared for the model and for the program.

    Returns:
        Module path -> norm of the difference over the norm of the model's output, over all
        batches, in execution order.
    """
    layers = _compared_layers(model)
    tensors = {name: tensor for name, tensor in _outputs(model, p).items() if name in layers}
    if not tensors:
        return {}
    errors = {name: ErrorEnergy() for name in tensors}
    recorder = ActivationRecorder({name: layers[name] for name in tensors}, output_array)
    model.eval()
    engine = p.engine(fetches=list(tensors.values()), int8=cpu_has_int8())
    for batch, own in batches:
        found = engine(own)
        with recorder.recording() as expected, paddle.no_grad():
            model(dict(batch))
            for name, tensor in tensors.items():
                errors[name].add(found[tensor], expected[name][-1])
    return {name: math.sqrt(error.relative) for name, error in errors.items()}


def _compared_layers(model: paddle.nn.Layer) -> dict[str, paddle.nn.Layer]:
    """Map the module path of each convolution to the layer whose output is compared."""
    record = record_of(model)
    if record is None:
        raise ExportError("the model is not quantized")
    modules = dict(model.named_sublayers())
    found = {
        layer.name: modules[layer.norm] if layer.norm else convolution_of(model, layer.name)
        for layer in record.layers
    }
    for name in record.kept_float:
        found[name] = convolution_of(model, name)
    return found


def _outputs(model: paddle.nn.Layer, p: DeployProgram) -> dict[str, str]:
    """Map the module path of each convolution to the variable that its layer outputs."""
    parameters, paths = dict(model.named_parameters()), layer_names(model)
    record = record_of(model)
    folded = {layer.name for layer in record.layers if layer.norm} if record else set()
    weights = {parameters[name].name: path for name, path in paths.items()}
    found = {}
    for op in p.convolutions:
        path = weights.get(p.stored_weight(op))
        if path is None:
            continue
        added = p.bias_addition(op)
        has_norm = added is not None and added.input("Y").endswith(".folded_bias")
        if has_norm == (path in folded):
            found[path] = p.with_bias(op)
    return found
