"""Lets two models that are compared pool features of the same proposals.

A two-stage detector takes the features of a box from a level that depends on the box's size. In
two models that differ by rounding, a box near the limit can get another level, so that its scores
are of other pixels and cannot be compared.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import paddle
from paddle.vision import ops


class Proposals:
    """The proposals of the first of two models, which the second one uses in place of its own.

    They are not compared themselves: no weight stands between them and outputs of the head, which
    are, and rounding changes which of two equally good boxes is left by NMS.
    """

    def __init__(self) -> None:
        self._first: list[np.ndarray] = []

    @contextlib.contextmanager
    def recorded(self) -> Iterator[None]:
        """While active, proposals are kept."""

        def keep(boxes: Any) -> Any:
            self._first.append(boxes.numpy())
            return boxes

        with _passed_through(keep):
            yield

    @contextlib.contextmanager
    def replayed(self) -> Iterator[None]:
        """While active, those that were kept are used, where there are as many."""
        left = iter(self._first)

        def replace(boxes: Any) -> Any:
            first = next(left, None)
            same = first is not None and list(first.shape) == list(boxes.shape)
            return paddle.to_tensor(first) if same else boxes

        with _passed_through(replace):
            yield


@contextlib.contextmanager
def _passed_through(change: Callable[[Any], Any]) -> Iterator[None]:
    original = ops.distribute_fpn_proposals

    def distribute(fpn_rois: Any, *args: Any, **kwargs: Any) -> Any:
        return original(change(fpn_rois), *args, **kwargs)

    ops.distribute_fpn_proposals = distribute
    try:
        yield
    finally:
        ops.distribute_fpn_proposals = original
