"""Taps: what named layers of a model gave in its last forward pass; the model is not changed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Union

import paddle
from paddle import Tensor
from paddle.nn import Layer

from slim_det.core.errors import LayerError, TrainingError
from slim_det.detectors.layer_finder import LayerFinder
from slim_det.detectors.yolov3_outputs import forward_without_boxes
from slim_det.graph.activations import ActivationRecorder
from slim_det.graph.dygraph import blank_batch, evaluation_mode
from slim_det.graph.layer_names import layer_names

Kept = Union[Tensor, "tuple[Tensor, Tensor]"]
"""A layer's output, or its input and output."""


@dataclass(frozen=True)
class Place:
    """Where a model is tapped.

    Attributes:
        path: Module path of the layer.
        reads: ``"output"``, or ``"flow"`` for the layer's (first) input and its output.
    """

    path: str
    reads: str = "output"


def find_layer(model: Layer, spelling: str) -> str:
    """Module path of the one layer that a name means.

    Args:
        model: The model whose layers are named.
        spelling: Path of any module, which is then returned; or any name of a weight that
            `LayerFinder` knows, which gives the shortest path with this one weight: a
            convolution together with its batch norm and activation.

    Raises:
        LayerError: Nothing, or more than one layer, has this name.
    """
    paths = {path for path, _ in model.named_sublayers()}
    if isinstance(spelling, str) and spelling in paths:
        return spelling
    weights, names = LayerFinder(model).find(spelling), layer_names(model)
    if len(weights) > 1:
        shown = ", ".join(names[weight] for weight in weights[:3])
        raise LayerError(f"'{spelling}' names {len(weights)} layers, expected one: {shown}, ...")
    path = names[weights[0]]
    return path if path in paths else weights[0].rpartition(".")[0]


class Taps(ActivationRecorder[Place]):
    """Records what some layers give in a forward pass, in which each of them has to run once.

    Call `open` just before the forward pass, and `take` after it.

    Args:
        model: The tapped model.
        places: Where; the same place may be given twice.

    Raises:
        LayerError: A path is not a module of the model.
    """

    def __init__(self, model: Layer, places: Iterable[Place]) -> None:
        self.model = model
        modules = dict(model.named_sublayers())
        layers = {}
        for place in places:
            if place.path not in modules:
                raise LayerError(f"'{place.path}' is not a module of {type(model).__name__}")
            layers[place] = modules[place.path]
        super().__init__(layers, _read)

    def take(self) -> dict[Place, Kept]:
        """Return what the forward pass since `open` left, and close.

        Raises:
            TrainingError: A layer did not run, or ran more than once.
        """
        try:
            for place, calls in self.kept.items():
                if len(calls) != 1:
                    raise TrainingError(
                        f"layer '{place.path}' of {type(self.model).__name__} ran {len(calls)} "
                        "times in one forward; a layer that teaches or learns has to run once"
                    )
            return {place: calls[0] for place, calls in self.kept.items()}
        finally:
            self.close()


def dry_run(taps: Taps, image_size_hw: tuple[int, int]) -> dict[Place, Kept]:
    """What the places give for one black image, in evaluation mode; the model stays as it was.

    Args:
        taps: Taps that are not attached.
        image_size_hw: Height and width in pixels; multiples of the coarsest stride.

    Raises:
        TrainingError: A layer is not run, or more than once.
    """
    with evaluation_mode(taps.model), paddle.no_grad(), taps.attached():
        taps.open()
        forward_without_boxes(taps.model, blank_batch(image_size_hw))
        return taps.take()


def _read(place: Place, received: Any, output: Any) -> Kept:
    """What a place keeps of one call of its layer."""
    read = {"input": received, "output": output} if place.reads == "flow" else {"output": output}
    for side, tensor in read.items():
        if not isinstance(tensor, Tensor):
            raise LayerError(
                f"the {side} of layer '{place.path}' is a {type(tensor).__name__}, expected one "
                "tensor; name a layer inside it"
            )
    return (received, output) if place.reads == "flow" else output
