"""Calibration: statistics of the inputs of a float model's convolutions on images."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator
from typing import Any

import paddle
from ppdet.core.workspace import create
from tqdm import tqdm

from slim_det.compress.quantize.observers import PtqOptions
from slim_det.compress.quantize.quantizable_layers import convolution_of
from slim_det.compress.quantize.record import QuantLayer
from slim_det.compress.quantize.statistics import Statistics
from slim_det.core.errors import DataError, QuantError, one_line
from slim_det.core.silence import quiet_stdout
from slim_det.evaluate.images import image_batches
from slim_det.graph.activations import ActivationRecorder
from slim_det.graph.dygraph import evaluation_mode

logger = logging.getLogger("slim_det")


def calibration_images(count: int) -> tuple[str, list[str]]:
    """The first images of ``TrainDataset``, in the order of its annotation file.

    Images without an object are left out unless the data set keeps them (``allow_empty``). If
    ``TrainDataset`` cannot be read, the images are from ``EvalDataset``, with a line that says so.

    Args:
        count: Number of images.

    Returns:
        Name of the data set, and paths of image files.

    Raises:
        ConfigError: ``count`` is less than 1.
        DataError: There are fewer, or no data set can be read.
    """
    PtqOptions(images=count).check()
    try:
        name, files = "TrainDataset", _files_of("TrainDataset")
    except DataError as error:
        logger.warning("calibration on EvalDataset: %s", error)
        name, files = "EvalDataset", _files_of("EvalDataset")
    if len(files) < count:
        raise DataError(
            f"{name} has {len(files)} images, {count} are asked for; expected at most {len(files)}"
        )
    return name, files[:count]


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


def run_images(
    model: paddle.nn.Layer, cfg: Any, images: list[str], label: str
) -> Iterator[dict[str, Any]]:
    """Run a detector on images with a progress bar, as it will be deployed.

    Yields:
        The outputs of each batch, after it has run. The model is in evaluation mode meanwhile.
    """
    batch_size = int(cfg["TestReader"].get("batch_size", 1))
    total = math.ceil(len(images) / batch_size)
    with deployed_mode(model, cfg), paddle.no_grad():
        batches = image_batches(cfg, images)
        for _, batch in tqdm(batches, label, total, unit="image", disable=None, leave=False):
            yield model(batch)


@contextlib.contextmanager
def deployed_mode(model: paddle.nn.Layer, cfg: Any) -> Iterator[None]:
    """Inside the context, a model runs as it will be deployed.

    It is in evaluation mode, and normalises images if the exported model does (``fuse_normalize``).
    """
    fused = getattr(model, "fuse_norm", False)
    if cfg["TestReader"].get("fuse_normalize", False):
        model.load_meanstd(cfg["TestReader"]["sample_transforms"])
        model.fuse_norm = True
    try:
        with evaluation_mode(model):
            yield
    finally:
        if hasattr(model, "fuse_norm"):
            model.fuse_norm = fused


def _files_of(name: str) -> list[str]:
    """Image files of a data set, in the order of its annotation file."""
    try:
        dataset = create(name)()
        with quiet_stdout():
            dataset.parse_dataset()
    except (OSError, ValueError, AssertionError, LookupError, TypeError) as error:
        reason = one_line(error) or type(error).__name__
        raise DataError(f"{name} cannot be read ({reason})") from error
    return [str(record["im_file"]) for record in dataset.roidbs]
