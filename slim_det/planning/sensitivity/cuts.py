"""The cuts of each group, and the masks of each cut."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np

from slim_det.planning.sensitivity.grid import key_of


@dataclass(frozen=True)
class Cut:
    """One group cut by one ratio.

    Attributes:
        group: Name of the group.
        ratio: Share of its channels that is removed.
        masks: Name of a program input -> its value; empty if the ratio removes no channel.
    """

    group: str
    ratio: float
    masks: dict[str, np.ndarray]

    @property
    def name(self) -> str:
        """What the journal calls it."""
        return f"{self.group}@{key_of(self.ratio)}"


@dataclass(frozen=True)
class Target:
    """A group with everything that is needed to measure its cuts.

    Attributes:
        name: Of the group.
        channels: Output channels of its widest member.
        readers: Weights (names in the program) that read its channels.
        macs: Multiply-accumulates of its partial program for one image.
        cuts: One per ratio, in the order of the grid.
    """

    name: str
    channels: int
    readers: tuple[str, ...]
    macs: int
    cuts: tuple[Cut, ...]


def keep_cuts(targets: Iterable[Target], is_kept: Callable[[Cut], bool]) -> tuple[Target, ...]:
    """The same groups with some of their cuts; groups without any are left out."""
    kept = (replace(t, cuts=tuple(filter(is_kept, t.cuts))) for t in targets)
    return tuple(target for target in kept if target.cuts)


def mask_name(reader: str) -> str:
    """Name of the mask of a weight's input channels."""
    return f"{reader}.mask"


def mask_value(keep: np.ndarray, weight_ndim: int, repeats: int) -> np.ndarray:
    """The mask of one reader.

    Args:
        keep: bool [C], which entries of the weight's input axis remain.
        weight_ndim: Axes of the weight; 4 for a convolution.
        repeats: Groups of the convolution, each of which reads C channels.
    """
    mask = np.tile(keep.astype(np.float32), repeats)
    return mask.reshape(1, -1, 1, 1) if weight_ndim == 4 else mask
