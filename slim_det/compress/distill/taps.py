"""Taps: what named layers of a model gave in its last forward, without touching the model."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Union

import paddle
from paddle import Tensor
from paddle.nn import Layer

from slim_det.core.errors import LayerError, TrainingError
from slim_det.detectors.layer_finder import LayerFinder
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


class Taps:
    """Forward hooks on named layers of one model.

    Nothing is kept while the taps are closed, so a model may run in between for any other
    reason. Open them just before the forward that counts, and take afterwards.

    Args:
        model: The tapped model; it is given hooks while attached, and never attributes.
        places: Where; the same place may be given twice.

    Raises:
        LayerError: A path is not a module of the model.
    """

    def __init__(self, model: Layer, places: Iterable[Place]) -> None:
        self.model = model
        layers = dict(model.named_sublayers())
        self._kept: dict[Place, list[Kept]] = {place: [] for place in places}
        for place in self._kept:
            if place.path not in layers:
                raise LayerError(f"'{place.path}' is not a module of {type(model).__name__}")
        self._layers = layers
        self._handles: list[Any] = []
        self._is_open = False

    def attach(self) -> None:
        """Place the hooks; nothing happens where they are in place already."""
        if not self._handles:
            for place in self._kept:
                hook = self._hook(place)
                self._handles.append(self._layers[place.path].register_forward_post_hook(hook))

    def detach(self) -> None:
        """Take the hooks away, and what they kept."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.close()

    def open(self) -> None:
        """Forget what was kept, and keep what comes from now on."""
        self.close()
        self._is_open = True

    def close(self) -> None:
        """Forget what was kept, and keep nothing from now on."""
        self._is_open = False
        for kept in self._kept.values():
            kept.clear()

    def take(self) -> dict[Place, Kept]:
        """Give what the forward since `open` left, and close.

        Raises:
            TrainingError: A layer did not run, or ran more than once.
        """
        try:
            for place, kept in self._kept.items():
                if len(kept) != 1:
                    raise TrainingError(
                        f"layer '{place.path}' of {type(self.model).__name__} ran {len(kept)} "
                        "times in one forward; a layer that teaches or learns has to run once"
                    )
            return {place: kept[0] for place, kept in self._kept.items()}
        finally:
            self.close()

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """Attach for a block of code."""
        self.attach()
        try:
            yield
        finally:
            self.detach()

    def _hook(self, place: Place) -> Any:
        def keep(layer: Layer, inputs: Any, output: Any) -> None:
            if self._is_open:
                self._kept[place].append(_read(place, inputs, output))

        return keep


def forward_without_boxes(model: Layer, batch: Any) -> Any:
    """Run a model on a batch as far as its raw outputs.

    The boxes of a YOLO detector are neither decoded nor sorted: its parts run one by one. Any
    other architecture runs whole.

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


def _read(place: Place, inputs: Any, output: Any) -> Kept:
    """What a place keeps of one call of its layer."""
    first = inputs[0] if isinstance(inputs, (tuple, list)) and inputs else None
    kept = (first, output) if place.reads == "flow" else (output,)
    for side, tensor in zip(("output",) if len(kept) == 1 else ("input", "output"), kept):
        if not isinstance(tensor, Tensor):
            raise LayerError(
                f"the {side} of layer '{place.path}' is a {type(tensor).__name__}, expected one "
                "tensor; name a layer inside it"
            )
    return output if len(kept) == 1 else kept
