"""Detectors of the shipped families with random weights, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle.nn.layer.norm import _BatchNormBase

from slim_det.graph.dygraph import blank_batch
from tests.support import CONFIGS

FILES = (
    *sorted((CONFIGS / "families").glob("*.yml")),
    CONFIGS / "ppyoloe" / "ppyoloe_plus_s_bccd.yml",
    CONFIGS / "picodet" / "picodet_s_bccd.yml",
)


def name_of(path: Path) -> str:
    """The name of a configuration, as the name of a test."""
    return path.stem


def noise(image_size_hw: tuple[int, int]) -> dict[str, paddle.Tensor]:
    """A batch of one image."""
    image = np.random.default_rng(1).normal(size=(1, 3, *image_size_hw)).astype("float32")
    return {**blank_batch(image_size_hw), "image": paddle.to_tensor(image)}


def settle(model: paddle.nn.Layer, image_size_hw: tuple[int, int]) -> None:
    """Give a model with random weights outputs of a usual size, which depend on the image.

    Batch norms get the statistics of noise: with those that they start with, features of a deep
    model grow or vanish. Weights of convolutions that start at zero or near it, as those of heads
    do, get the usual size: otherwise all boxes have the same score.

    Args:
        model: A ppdet architecture, which is in evaluation mode afterwards.
        image_size_hw: Height and width of the noise, in pixels.
    """
    rng = np.random.default_rng(0)
    for param in model.parameters():
        usual = 1.0 / np.sqrt(np.prod(param.shape[1:])) if param.ndim == 4 else 0.0
        if param.numpy().std() < 0.5 * usual:
            param.set_value(rng.normal(0.0, usual, param.shape).astype("float32"))
    norms = [layer for layer in model.sublayers() if isinstance(layer, _BatchNormBase)]
    hooks = [layer.register_forward_pre_hook(_take_statistics) for layer in norms]
    model.eval()
    with paddle.no_grad():
        model(noise(image_size_hw))
    for hook in hooks:
        hook.remove()


def _take_statistics(layer: Any, inputs: Any) -> None:
    """Give a batch norm the statistics of what it is about to normalise."""
    feature = inputs[0].transpose([1, 0, 2, 3]).flatten(1)
    layer._mean.set_value(feature.mean(axis=1))
    layer._variance.set_value(feature.var(axis=1, unbiased=False))
