"""How much the cut of one group changes what a detector finds, without labels.

The error of the layers that read a group says little about the detector: what follows may not need
their outputs. So the detector is run on a few images with these layers solved for without the
removed channels, and its scores and boxes are compared with those of the unpruned detector, before
non-maximum suppression, where they are continuous.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from slim_det.graph.op import Op
from slim_det.graph.staged_run import ArrayStore
from slim_det.planning.sensitivity.partial_inference import DetectorProgram, value_name

IMAGES = 8

BATCH = 8
"""Most images that are run at once; new weights are given to the engine for each batch."""

BATCH_MB = 300
"""Largest size of what is kept of one batch, in files; a batch has at least one image."""

FOUND = 0.5
"""From this score on, a box counts as found; classes without such a box are left out."""

_INPUTS = ("Scores", "BBoxes")

Arrays = Mapping[str, np.ndarray]


def suppression(program: DetectorProgram) -> Op | None:
    """The non-maximum suppression of a detector whose boxes are always the same candidates.

    None if the detector ends in something else, or if its candidates depend on the image.
    """
    deployed = program.program
    if any("proposals" in op.type for op in deployed.ops):
        return None
    ops = [op for op in deployed.ops if all(op.input(slot) for slot in _INPUTS)]
    ranks = [len(deployed.block.var(op.input(slot)).shape) for op in ops for slot in _INPUTS]
    return ops[0] if ranks == [3, 3] else None


class DetectionErrors:
    """The change of scores and boxes on some images.

    Args:
        program: The unpruned detector.
        op: Its `suppression`.
        images: Inputs of the program for each image, with a batch axis of one.
        weights: Variables of all weights that may be changed.
    """

    def __init__(
        self,
        program: DetectorProgram,
        op: Op,
        images: Sequence[Arrays],
        weights: Iterable[Sequence[str]],
    ) -> None:
        self._program = program
        self._scores, self._boxes = (op.input(slot) for slot in _INPUTS)
        names = dict.fromkeys(name for own in weights for name in program.partial(own).cached)
        self._store = ArrayStore(Path(tempfile.mkdtemp(dir=program.folder)))
        for name in names:
            self._store.create(name)
        engine = program.complete_engine([self._scores, self._boxes, *names])
        self._found: list[_Found] = []
        for batch in _batches(images, program.bytes_an_image(names)):
            run = {**batch, **engine(batch)}
            self._found.append(_Found(run[self._scores], run[self._boxes]))
            for name in names:
                self._store.append(name, run[name])
        scores = np.concatenate([one.scores for one in self._found])
        self._size = np.square(scores, dtype=np.float64).sum(axis=(0, 2))
        classes = np.arange(scores.shape[1]) != int(op.attrs.get("background_label", -1))
        found = classes & (scores.max(axis=(0, 2)) >= FOUND)
        self._counted = found if found.any() else classes

    def measure(self, changes: Sequence[Arrays]) -> list[float]:
        """The error of each change.

        For one class, the squared differences of its scores, plus those of the boxes relative to
        their size and weighted by the squared score, are divided by the sum of its squared scores.
        The error is the mean over the classes that are found.

        Args:
            changes: Variable -> new value, at least one; each changes the same parameters.
        """
        engine = self._program.engine_with(changes[0], [self._scores, self._boxes])
        given = [{value_name(name): value for name, value in one.items()} for one in changes]
        cached = [name for name in engine.inputs if name not in given[0]]
        errors = np.zeros((len(changes), len(self._size)))
        for index, before in enumerate(self._found):
            run = {name: self._store.read(name, index) for name in cached}
            for error, values in zip(errors, given):
                changed = engine({**run, **values})
                error += before.change(changed.get(self._scores), changed.get(self._boxes))
        shares = errors / np.maximum(self._size, 1e-30)
        means: list[float] = shares[:, self._counted].mean(axis=1).tolist()
        return means


@dataclass(frozen=True)
class _Found:
    """Scores [N, C, P] and boxes [N, P, 4] of some images."""

    scores: np.ndarray
    boxes: np.ndarray

    @cached_property
    def sides(self) -> np.ndarray:
        """Width and height of each box, twice, [N, P, 4]."""
        return np.tile(np.maximum(self.boxes[..., 2:] - self.boxes[..., :2], 1e-6), 2)

    def change(self, scores: np.ndarray | None, boxes: np.ndarray | None) -> np.ndarray:
        """Squared differences of every class, float64 [C]; None is no change."""
        found = np.zeros(self.scores.shape[1])
        if scores is not None:
            found += np.square(scores - self.scores).sum(axis=(0, 2), dtype=np.float64)
        if boxes is not None:
            shift = np.square((boxes - self.boxes) / self.sides).mean(axis=2)
            weighted = np.square(self.scores) @ shift[..., None]
            found += weighted.sum(axis=(0, 2), dtype=np.float64)
        return found


def _batches(images: Sequence[Arrays], bytes_an_image: int) -> Iterator[dict[str, np.ndarray]]:
    size = max(1, min(BATCH, int(BATCH_MB * 1e6 / max(bytes_an_image, 1))))
    for start in range(0, len(images), size):
        some = images[start : start + size]
        yield {name: np.concatenate([image[name] for image in some]) for name in some[0]}
