"""Taps: what named layers of a model gave in its last forward pass; the model is not changed."""

from __future__ import annotations

import contextlib
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
"""A tensor that a layer gave, or its input and output."""


@dataclass(frozen=True)
class Place:
    """Where a model is tapped.

    A layer that runs several times, such as a head that all scales share, or that gives a list,
    such as a neck, gives several tensors in a forward pass. They are numbered in order.

    Attributes:
        path: Module path of the layer.
        reads: ``"output"``, or ``"flow"`` for the layer's (first) input and its output.
        item: Which of its tensors, from 0.
        of: How many tensors the layer gives.
    """

    path: str
    reads: str = "output"
    item: int = 0
    of: int = 1


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
    """Records what some layers give in a forward pass.

    Call `open` just before the forward pass and `take` after it, or `run` for both.

    Args:
        model: The tapped model.
        places: Where; the same place may be given twice.

    Raises:
        LayerError: A path is not a module of the model.
    """

    def __init__(self, model: Layer, places: Iterable[Place]) -> None:
        self.model = model
        self._stops = False
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
            TrainingError: A layer gave another number of tensors.
        """
        try:
            taken = {}
            for place in self.kept:
                found = self._tensors(place)
                if len(found) != place.of:
                    raise TrainingError(
                        f"layer '{place.path}' of {type(self.model).__name__} gave "
                        f"{_tensors(len(found))} in a forward pass, expected {place.of}"
                    )
                taken[place] = found[place.item]
            return taken
        finally:
            self.close()

    def run(self, batch: Any) -> dict[Place, Kept]:
        """Run the model as far as its places, and take what they gave.

        What comes after them, such as the boxes of a detector, is not computed.

        Args:
            batch: What the model's ``forward`` takes; not changed.

        Raises:
            TrainingError: A layer gave another number of tensors.
        """
        self.open()
        self._stops = bool(self.kept)
        try:
            with contextlib.suppress(_AllGiven):
                forward_without_boxes(self.model, batch)
            return self.take()
        finally:
            self._stops = False
            self.close()

    def _tensors(self, place: Place) -> list[Kept]:
        return [tensor for call in self.kept[place] for tensor in call]

    def _recorded(self) -> None:
        if self._stops and all(len(self._tensors(place)) >= place.of for place in self.kept):
            raise _AllGiven


class _AllGiven(Exception):
    """Ends a forward pass whose remainder is not needed."""


def dry_run(taps: Taps, image_size_hw: tuple[int, int]) -> dict[Place, Kept]:
    """What the places give for one black image, in evaluation mode; the model stays as it was.

    Args:
        taps: Taps that are not attached.
        image_size_hw: Height and width in pixels; multiples of the coarsest stride.

    Raises:
        TrainingError: A layer gave another number of tensors.
    """
    with evaluation_mode(taps.model), paddle.no_grad(), taps.attached():
        return taps.run(blank_batch(image_size_hw))


def count_tensors(
    model: Layer, places: Iterable[Place], image_size_hw: tuple[int, int]
) -> dict[Place, int]:
    """How many tensors the layers of some places give for one image.

    Args:
        model: The model; it stays as it was.
        places: Their item and number are ignored.
        image_size_hw: See `dry_run`.

    Raises:
        TrainingError: A layer does not run.
    """
    taps = Taps(model, places)
    with evaluation_mode(model), paddle.no_grad(), taps.attached():
        taps.open()
        if taps.kept:
            forward_without_boxes(model, blank_batch(image_size_hw))
        counts = {place: len(taps._tensors(place)) for place in taps.kept}
    for place, count in counts.items():
        if not count:
            raise TrainingError(
                f"layer '{place.path}' of {type(model).__name__} does not run in a forward pass; "
                "name one that does"
            )
    return counts


def _tensors(count: int) -> str:
    return "1 tensor" if count == 1 else f"{count} tensors"


def _read(place: Place, received: Any, output: Any) -> list[Kept]:
    """What a place keeps of one call of its layer."""
    if place.reads == "flow":
        for side, tensor in (("input", received), ("output", output)):
            if not isinstance(tensor, Tensor):
                raise _not_a_tensor(side, place, tensor, "one tensor")
        return [(received, output)]
    found = list(output) if isinstance(output, (list, tuple)) else [output]
    if not found or not all(isinstance(tensor, Tensor) for tensor in found):
        raise _not_a_tensor("output", place, output, "a tensor or a list of tensors")
    return found


def _not_a_tensor(side: str, place: Place, found: Any, expected: str) -> LayerError:
    return LayerError(
        f"the {side} of layer '{place.path}' is a {type(found).__name__}, expected {expected}; "
        "name a layer inside it"
    )
