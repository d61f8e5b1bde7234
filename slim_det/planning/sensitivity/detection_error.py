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
        self._background = int(op.attrs.get("background_label", -1))
        names = [name for own in weights for name in program.partial(own).cached]
        engine = program.complete_engine([self._scores, self._boxes, *names])
        self._runs = [{**image, **engine(image)} for image in images]

    def measure(self, changes: Sequence[Arrays]) -> list[float]:
        """The error of each change.

        For one class, the squared differences of its scores, plus those of the boxes relative to
        their size and weighted by the squared score, are divided by the sum of its squared scores.
        The error is the mean over the classes that are found.

        Args:
            changes: Variable -> new value; each changes the same parameters.
        """
        names = list(changes[0])
        weights = [name for name in names if len(self._program.program.block.var(name).shape) > 1]
        partial = self._program.partial(weights, names)
        outputs = [self._scores, self._boxes]
        engine = self._program.engine_with(partial, names, outputs)
        errors = []
        for change in changes:
            given = {value_name(name): value for name, value in change.items()}
            parts = [self._compared(run, {**run, **engine({**run, **given})}) for run in self._runs]
            error, size, best = (np.stack(part) for part in zip(*parts))
            found = best.max(axis=0) >= FOUND
            chosen = found if found.any() else np.ones_like(found)
            total, size = error.sum(axis=0)[chosen], size.sum(axis=0)[chosen]
            errors.append(float((total / np.maximum(size, 1e-30)).mean()))
        return errors

    def _compared(self, before: Arrays, after: Arrays) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Error, size and best score of every class, float64 [C], of one image."""
        scores, changed = (a[self._scores][0].astype(np.float64) for a in (before, after))
        boxes, moved = (a[self._boxes][0].astype(np.float64) for a in (before, after))
        sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 1e-6)
        shift = np.square((moved - boxes) / np.tile(sides, 2)).mean(axis=1)
        weight = np.square(scores)
        error = (np.square(changed - scores) + weight * shift).sum(axis=1)
        classes = np.arange(len(scores)) != self._background
        return error[classes], weight.sum(axis=1)[classes], scores.max(axis=1)[classes]
