"""How much the cut of one group changes what a detector finds, without labels.

The error of the layers that read a group says little about the detector: what follows may not need
their outputs. So the detector is run on a few images with these layers solved for without the
removed channels, and its scores and boxes are compared with those of the unpruned detector, before
non-maximum suppression, where they are continuous.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from slim_det.graph.op import Op
from slim_det.planning.sensitivity.partial_inference import DetectorProgram, value_name

IMAGES = 16

BATCH = 8
"""Images that are run at once; new weights are given to the engine for each batch."""

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
        names = [name for own in weights for name in program.partial(own).cached]
        engine = program.complete_engine([self._scores, self._boxes, *names])
        batches = [_together(images[at : at + BATCH]) for at in range(0, len(images), BATCH)]
        self._runs = [{**batch, **engine(batch)} for batch in batches]
        self._sides = [_sides(run[self._boxes]) for run in self._runs]
        scores = np.concatenate([run[self._scores] for run in self._runs])
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
        errors = []
        for change in changes:
            given = {value_name(name): value for name, value in change.items()}
            error = sum(
                self._change(run, sides, engine({**run, **given}))
                for run, sides in zip(self._runs, self._sides)
            )
            shares = error / np.maximum(self._size, 1e-30)
            errors.append(float(shares[self._counted].mean()))
        return errors

    def _change(self, before: Arrays, sides: np.ndarray, changed: Arrays) -> np.ndarray:
        """Squared differences of every class in some images, float64 [C]."""
        scores, boxes = before[self._scores], before[self._boxes]
        found = np.zeros(scores.shape[1])
        if self._scores in changed:
            found += np.square(changed[self._scores] - scores).sum(axis=(0, 2), dtype=np.float64)
        if self._boxes in changed:
            shift = np.square((changed[self._boxes] - boxes) / sides).mean(axis=2)
            found += (np.square(scores) @ shift[..., None]).sum(axis=(0, 2), dtype=np.float64)
        return found


def _together(images: Sequence[Arrays]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([image[name] for image in images]) for name in images[0]}


def _sides(boxes: np.ndarray) -> np.ndarray:
    """Width and height of each box, twice, [N, P, 4]."""
    return np.tile(np.maximum(boxes[..., 2:] - boxes[..., :2], 1e-6), 2)
