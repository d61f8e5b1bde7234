"""Runs the layer that reads cut channels apart from the rest of a tail, only once over all cuts.

A convolution is a sum over its input channels. The channels that one cut keeps are those of the
next larger cut and some more, so from the largest cut to the smallest its output is a running
sum: each channel is convolved once for all cuts and not once for each. The rest of the tail then
starts behind this layer, its *stem*.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from slim_det.sensitivity.masks import mask_name

if TYPE_CHECKING:
    from slim_det.sensitivity.candidates import Cut
    from slim_det.sensitivity.tails import Arrays, DetectorProgram


@dataclass(frozen=True)
class Stem:
    """A reader that is a plain convolution of something that enters the tail.

    Attributes:
        reader: Its weight.
        place: Place of its operator in the program.
        source: Variable that it reads.
        output: Variable that it makes.
    """

    reader: str
    place: int
    source: str
    output: str


class RunningStem:
    """The output of a stem for one cut after another.

    Args:
        program: The detector.
        stem: The convolution.
    """

    def __init__(self, program: DetectorProgram, stem: Stem) -> None:
        self.stem = stem
        self._program = program
        self._kept = np.zeros(0, np.int64)
        self._sums: list[np.ndarray] = []

    def advance(self, cut: Cut, frontiers: Sequence[Arrays]) -> list[np.ndarray]:
        """Give the stem's output for the next cut.

        Args:
            cut: The cut; fast where it keeps all that the one before it kept.
            frontiers: For every batch, at least the stem's source [B, C, H, W].

        Returns:
            For every batch [B, C', H', W'], valid until the next call.
        """
        mask = cut.masks[mask_name(self.stem.reader)]
        kept = np.flatnonzero(mask.ravel())
        is_continued = bool(self._sums) and np.isin(self._kept, kept).all()
        added = np.setdiff1d(kept, self._kept) if is_continued else kept
        sums: list[np.ndarray] = []
        if len(added):
            runner = self._program.part(self.stem, added)
            for i, frontier in enumerate(frontiers):
                source = {self.stem.source: frontier[self.stem.source][:, added]}
                part = runner(source)[self.stem.output]
                if is_continued:
                    self._sums[i] += part
                else:
                    sums.append(part)
        self._sums = self._sums if is_continued else sums
        self._kept = kept
        return self._sums
