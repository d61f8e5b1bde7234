"""Helpers to run a model outside its training: its modes, random numbers and a blank batch."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import paddle
from paddle.nn.layer.norm import _BatchNormBase


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


@contextlib.contextmanager
def loss_mode(model: paddle.nn.Layer) -> Iterator[None]:
    """Let a detector compute its training loss with batch norms that work as in evaluation.

    Their statistics are used and not changed. Every layer gets its previous mode back at the end.
    """
    with evaluation_mode(model):
        for layer in model.sublayers(include_self=True):
            layer.training = not isinstance(layer, (_BatchNormBase, paddle.nn.BatchNorm))
        yield


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed Python, NumPy and Paddle; all three go on as before at the end."""
    states = random.getstate(), np.random.get_state(), paddle.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    paddle.seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        paddle.set_rng_state(states[2])


def blank_batch(image_size_hw: tuple[int, int]) -> dict[str, paddle.Tensor]:
    """One black image as a detector takes it: image float32 [1, 3, H, W], sizes [1, 2]."""
    height, width = image_size_hw
    return {
        "image": paddle.zeros([1, 3, height, width]),
        "im_shape": paddle.to_tensor([[height, width]], "float32"),
        "scale_factor": paddle.ones([1, 2]),
    }
