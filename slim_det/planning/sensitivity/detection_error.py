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
        self._runs = [{**image, **engine(image)} for image in images]
        scores = np.stack([run[self._scores][0] for run in self._runs]).astype(np.float64)
        self._size = np.square(scores).sum(axis=(0, 2))
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
            error = sum(self._change(run, engine({**run, **given})) for run in self._runs)
            shares = error / np.maximum(self._size, 1e-30)
            errors.append(float(shares[self._counted].mean()))
        return errors

    def _change(self, before: Arrays, changed: Arrays) -> np.ndarray:
        """Squared differences of every class in one image, float64 [C]."""
        both = (before, {**before, **changed})
        scores, new_scores = (arrays[self._scores][0].astype(np.float64) for arrays in both)
        boxes, new_boxes = (arrays[self._boxes][0].astype(np.float64) for arrays in both)
        sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 1e-6)
        shift = np.square((new_boxes - boxes) / np.tile(sides, 2)).mean(axis=1)
        found: np.ndarray = np.square(new_scores - scores) + np.square(scores) * shift
        return found.sum(axis=1)
