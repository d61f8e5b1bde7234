"""Calibration: statistics of the inputs of a float model's convolutions on images."""

from __future__ import annotations

from typing import Any

import paddle

from slim_det.compress.images import run_images
from slim_det.compress.quantize.quantizable_layers import convolution_of
from slim_det.compress.quantize.record import QuantLayer
from slim_det.compress.quantize.statistics import Statistics
from slim_det.core.errors import QuantError
from slim_det.graph.activations import ActivationRecorder


def collect(
    model: paddle.nn.Layer, layers: list[QuantLayer], cfg: Any, images: list[str]
) -> dict[str, Statistics]:
    """Run a float model on images and collect statistics of the layers' inputs.

    Args:
        model: A float detector; left as it was.
        layers: Convolutions; those that share a range are left out.
        cfg: ppdet's configuration.
        images: Paths of image files.

    Returns:
        Module path -> statistics of the layer's input.

    Raises:
        QuantError: A layer did not run, or its input is not finite.
    """
    found = {layer.name: Statistics() for layer in layers if not layer.shares}

    def add(name: str, received: paddle.Tensor, output: Any) -> None:
        try:
            found[name].add(received.numpy())
        except ValueError as error:
            raise QuantError(
                f"'{name}' reads a value that is not finite; expected sound weights"
            ) from error

    recorder = ActivationRecorder({name: convolution_of(model, name) for name in found}, add)
    with recorder.recording():
        for _ in run_images(model, cfg, images, "calibration"):
            pass
    for name, statistics in found.items():
        if not statistics.maxima:
            raise QuantError(f"'{name}' did not run on the calibration images; name it in 'skip'")
    return found
