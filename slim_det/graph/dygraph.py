"""Helpers to run a model outside its training: evaluation mode and a blank batch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import paddle


@contextlib.contextmanager
def evaluation_mode(model: paddle.nn.Layer) -> Iterator[None]:
    """Put a model in evaluation mode; every layer gets its previous mode back at the end."""
    modes = [(layer, layer.training) for layer in model.sublayers(include_self=True)]
    model.eval()
    try:
        yield
    finally:
        for layer, training in modes:
            layer.training = training


def blank_batch(image_size_hw: tuple[int, int]) -> dict[str, paddle.Tensor]:
    """One black image as a detector takes it: image float32 [1, 3, H, W], sizes [1, 2]."""
    height, width = image_size_hw
    return {
        "image": paddle.zeros([1, 3, height, width]),
        "im_shape": paddle.to_tensor([[height, width]], "float32"),
        "scale_factor": paddle.ones([1, 2]),
    }
