"""Where an int8 artifact begins to differ from the model that simulates it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle

from slim_det.compress.quantize.quantizable_layers import convolution_of
from slim_det.compress.quantize.record import record_of
from slim_det.core.errors import ExportError
from slim_det.evaluate.evaluation import dygraph_predictor
from slim_det.evaluate.images import image_batches
from slim_det.graph.engine import cpu_has_int8
from slim_det.graph.layer_names import layer_names
from slim_det.graph.program import DeployProgram

THRESHOLD = 0.05
"""Relative error below which a layer is never blamed: two engines round the same integers."""

JUMP = 3.0
"""Errors grow from layer to layer; one at fault is at least so many times all before it."""


@dataclass(frozen=True)
class Divergence:
    """The layer to look at first.

    Attributes:
        name: Its module path.
        error: Norm of the difference of its outputs over the norm of the model's output, of all
            images together.
        jump: Whether its error is above `THRESHOLD` and `JUMP` times every one before; else no
            layer's is, and it is the one with the largest.
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
    signal, noise = (dict.fromkeys(tensors, 0.0) for _ in range(2))
    predict = dygraph_predictor(model)
    engine = p.engine(fetches=list(tensors.values()), int8=cpu_has_int8())
    for batch in batches:
        found = engine(batch)
        with _outputs_kept({name: layers[name] for name in tensors}) as expected:
            predict(dict(batch))
        for name, tensor in tensors.items():
            values = expected[name].astype(np.float64)
            signal[name] += float(np.square(values).sum())
            noise[name] += float(np.square(found[tensor] - values).sum())
    # A layer that gives nothing but zeros has no relative error unless the other does not.
    return {name: float(np.sqrt(noise[name] / max(signal[name], 1e-300))) for name in tensors}


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


@contextlib.contextmanager
def _outputs_kept(layers: dict[str, paddle.nn.Layer]) -> Iterator[dict[str, np.ndarray]]:
    """While active, each layer's last output is in the mapping, by the same name."""
    kept: dict[str, np.ndarray] = {}
    hooks = []

    def keep(name: str) -> Any:
        def hook(layer: Any, inputs: Any, output: Any) -> None:
            kept[name] = output.numpy()

        return hook

    try:
        for name, layer in layers.items():
            hooks.append(layer.register_forward_post_hook(keep(name)))
        yield kept
    finally:
        for handle in hooks:
            handle.remove()
