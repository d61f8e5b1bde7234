"""Writes random weights for a configuration, with which its features stay of a usual size.

    python tools/compatibility/weights.py CONFIG FILE.pdparams

CONFIG may be a slim file whose `_BASE_` is a teacher. Batch norms get the statistics of noise: with
those of an untrained model, frozen ones would let features grow to infinity.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle.nn.layer.norm import _BatchNormBase

import slim_det  # noqa: F401  (before ppdet)
from slim_det.compress.distill.slim_file import SLIM_KEYS
from slim_det.core.safe_yaml import read_tree
from slim_det.detectors.fixed_size import at_any_size
from slim_det.training.config import load_tree
from slim_det.training.session import build_model

SIZE_HW = (128, 128)


def main(config: str, out: str) -> None:
    """Build the detector of a configuration, and save it with the statistics of noise."""
    tree = {key: value for key, value in read_tree(config).items() if key not in SLIM_KEYS}
    paddle.seed(0)
    model = build_model(load_tree(tree, config, ["use_gpu=false"]))
    layers = [layer for layer in model.sublayers() if isinstance(layer, _BatchNormBase)]
    hooks = [layer.register_forward_pre_hook(take_statistics) for layer in layers]
    with paddle.no_grad(), at_any_size(model):
        model(noise())
    for hook in hooks:
        hook.remove()
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    paddle.save(model.state_dict(), out)


def take_statistics(layer: Any, inputs: Any) -> None:
    """Give a batch norm the statistics of what it is about to normalise."""
    feature = inputs[0].transpose([1, 0, 2, 3]).flatten(1)
    layer._mean.set_value(feature.mean(axis=1))
    # A channel that is nearly constant in noise would be amplified, and gradients with it.
    layer._variance.set_value(feature.var(axis=1, unbiased=False).clip(min=0.1))


def noise() -> dict[str, paddle.Tensor]:
    """A batch of two images."""
    image = np.random.default_rng(0).normal(size=(2, 3, *SIZE_HW)).astype("float32")
    return {
        "image": paddle.to_tensor(image),
        "im_shape": paddle.to_tensor([SIZE_HW] * 2, "float32"),
        "scale_factor": paddle.ones([2, 2]),
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
