"""Detectors whose heads keep the anchors of one image size (``eval_size``)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import paddle


@contextlib.contextmanager
def at_any_size(model: paddle.nn.Layer) -> Iterator[None]:
    """Let a detector compute its anchors from the image, whatever size it was configured for."""
    fixed = [layer for layer in model.sublayers() if getattr(layer, "eval_size", None)]
    sizes = [layer.eval_size for layer in fixed]
    try:
        for layer in fixed:
            layer.eval_size = None
        yield
    finally:
        for layer, size in zip(fixed, sizes):
            layer.eval_size = size
