"""Where an int8 artifact begins to differ from the model that simulates it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import paddle

from slim_det.compress.quantize.quantizable_layers import convolution_of
from slim_det.compress.quantize.record import record_of
from slim_det.core.errors import ExportError
from slim_det.evaluate.images import image_batches
from slim_det.evaluate.tensor_agreement import ErrorEnergy
from slim_det.graph.activations import ActivationRecorder, output_array
from slim_det.graph.engine import cpu_has_int8
from slim_det.graph.layer_names import layer_names
from slim_det.graph.program import DeployProgram

THRESHOLD = 0.05
"""Relative error up to which a layer is never blamed: engines round in slightly other places."""

JUMP = 3.0
"""Errors grow from layer to layer; that of a faulty one is so many times all before it."""


@dataclass(frozen=True)
class Divergence:
    """The layer to look at first.

    Attributes:
        name: Its module path.
        error: Norm of the difference of its outputs over the norm of the model's output, of all
            images together.
        jump: Whether its error is above `THRESHOLD` and `JUMP` times every one before. If no
            layer has such an error, this is the layer with the largest.
    """

    name: str
    error: float
    jump: bool

    def __str__(self) -> str:
        """Half a line for people."""
        if self.jump:
            return (
                f"the first layer that differs is '{self.name}' (relative error {self.error:.2f})"
            )
        return (
            f"errors grow slowly from layer to layer, the largest is that of '{self.name}' "
            f"(relative error {self.error:.2f})"
        )


def pick_layer(errors: Mapping[str, float]) -> Divergence:
    """The first layer whose error jumps, else the one with the largest.

    Args:
        errors: Module path -> relative error, in the order of execution; not empty.
    """
    largest = 0.0
    for name, error in errors.items():
        if not error <= max(THRESHOLD, JUMP * largest):
            return Divergence(name, error, True)
        largest = max(largest, error)
    worst = max(errors, key=lambda name: errors[name])
    return Divergence(worst, errors[worst], False)


def first_divergence(
    model: paddle.nn.Layer, p: DeployProgram, cfg: Any, images: list[str]
) -> Divergence:
    """Compare what every convolution gives in Paddle Inference and in the model.

    Args:
        model: A quantized model.
        p: Its program with integers, batch norm folded.
        cfg: ppdet's configuration.
        images: Image files.

    Raises:
        ExportError: No convolution of the model is in the program, or there is no image.
    """
    errors = layer_errors(model, p, (batch for _, batch in image_batches(cfg, images)))
    if not errors:
        raise ExportError("the model and the program have no convolution in common")
    return pick_layer(errors)


def layer_errors(
    model: paddle.nn.Layer, p: DeployProgram, batches: Iterable[dict[str, Any]]
) -> dict[str, float]:
    """Relative error of every convolution's output, after its batch norm or bias.

    Left out are float convolutions with a batch norm: a record does not name it, and what they
    do wrong is seen in the next layer.

    Args:
        model: A quantized model.
        p: Its program with integers, batch norm folded.
        batches: As ppdet's readers give them.

    Returns:
        Module path -> norm of the difference over norm of the model's output, of all batches, in
        the order of execution.
    """
    layers = _compared_layers(model)
    tensors = {name: tensor for name, tensor in _outputs(model, p).items() if name in layers}
    if not tensors:
        return {}
    errors = {name: ErrorEnergy() for name in tensors}
    recorder = ActivationRecorder({name: layers[name] for name in tensors}, output_array)
    model.eval()
    engine = p.engine(fetches=list(tensors.values()), int8=cpu_has_int8())
    for batch in batches:
        found = engine(batch)
        with recorder.recording() as expected, paddle.no_grad():
            model(dict(batch))
            for name, tensor in tensors.items():
                errors[name].add(found[tensor], expected[name][-1])
    return {name: math.sqrt(error.relative) for name, error in errors.items()}


def _compared_layers(model: paddle.nn.Layer) -> dict[str, paddle.nn.Layer]:
    """Module path of a convolution -> layer whose output is compared."""
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
    """Module path of a convolution -> the variable that its layer gives."""
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
