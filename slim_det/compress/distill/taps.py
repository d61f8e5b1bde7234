"""Taps: what named layers of a model gave in its last forward, without touching the model."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Union

import paddle
from paddle import Tensor
from paddle.nn import Layer

from slim_det.core.errors import LayerError, TrainingError
from slim_det.detectors.layer_finder import LayerFinder
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
        spelling: Path of any module, which is then meant itself; or any name that
            `LayerFinder` knows, which means the shortest path with this one weight: a
            convolution together with its batch norm and activation.

    Raises:
        LayerError: Nothing, or more than one layer, has this name.
    """
    paths = _paths(model)
    if isinstance(spelling, str) and spelling in paths:
        return spelling
    weights = LayerFinder(model).find(spelling)
    if len(weights) > 1:
        names = layer_names(model)
        shown = ", ".join(names[weight] for weight in weights[:3])
        raise LayerError(f"'{spelling}' names {len(weights)} layers, expected one: {shown}, ...")
    path = layer_names(model)[weights[0]]
    return path if path in paths else weights[0].rpartition(".")[0]


def yolo_outputs(model: Layer) -> list[str]:
    """Paths of the convolutions that give the raw YOLO outputs, in order of scales."""
    paths = _paths(model)
    names = (f"yolo_head.yolo_output.{scale}" for scale in itertools.count())
    return list(itertools.takewhile(paths.__contains__, names))


class Taps(ActivationRecorder[Place]):
    """The places of a model that teaches or learns, each of which has to run once in a forward.

    Open the taps just before the forward that counts, and take afterwards.

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
        """Give what the forward since `open` left, and close.

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


def forward_without_boxes(model: Layer, batch: Any) -> Any:
    """Run a model on a batch as far as its raw outputs.

    The boxes of a YOLO detector are neither decoded nor sorted: its parts run one by one. Any
    other architecture runs to its end.

    Args:
        model: A detector of ppdet, in the mode that is wanted.
        batch: What its ``forward`` takes; not changed.
    """
    batch = dict(batch) if isinstance(batch, dict) else batch
    if not all(hasattr(model, part) for part in ("backbone", "neck", "yolo_head")):
        return model(batch)
    return model.yolo_head(model.neck(model.backbone(batch)))


def dry_run(taps: Taps, image_size_hw: tuple[int, int]) -> dict[Place, Kept]:
    """What the places give for one black image, in evaluation mode; the model stays as it was.

    Args:
        taps: Taps that are not attached.
        image_size_hw: Height and width in pixels; a multiple of the coarsest stride.

    Returns:
        Place -> tensors of batch 1.

    Raises:
        TrainingError: A layer is not run, or more than once.
    """
    with evaluation_mode(taps.model), paddle.no_grad(), taps.attached():
        taps.open()
        forward_without_boxes(taps.model, blank_batch(image_size_hw))
        return taps.take()


def _paths(model: Layer) -> set[str]:
    return {path for path, _ in model.named_sublayers()}


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
