"""The images that a method learns from, with labels or without, and how a detector runs on them."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import paddle
from ppdet.core.workspace import create
from tqdm import tqdm

from slim_det.core.errors import DataError, reason_of
from slim_det.core.schema import whole_number
from slim_det.core.silence import quiet_stdout
from slim_det.detectors.image_size import target_size_hw
from slim_det.evaluate.data.check import check_dataset
from slim_det.evaluate.data.image_files import find_images, require_images
from slim_det.evaluate.images import image_batches
from slim_det.evaluate.readers import read_batch
from slim_det.graph.dygraph import evaluation_mode

logger = logging.getLogger("slim_det")


def calibration_images(count: int, key: str = "images") -> tuple[str, list[str]]:
    """The first images of ``TrainDataset``, in the order of its annotation file.

    Images without an object are left out unless the data set keeps them (``allow_empty``). If
    ``TrainDataset`` cannot be read, the images are from ``EvalDataset``, with a line that says so.

    Args:
        count: Number of images.
        key: What sets it, for error messages.

    Returns:
        Name of the data set, and paths of image files.

    Raises:
        ConfigError: ``count`` is less than 1.
        DataError: There are fewer, one is not a complete image, or no data set can be read.
    """
    whole_number(key, count, 1)
    name, files = _training_images()
    if len(files) < count:
        raise DataError(
            f"{name} has {len(files)} images, {count} are asked for ({key}); expected at most "
            f"{len(files)}"
        )
    require_images(files[:count])
    return name, files[:count]


def unlabelled_images(most: int, folder: str | None = None) -> tuple[str, list[str]]:
    """Images to learn from without labels: those of a folder, or of ``TrainDataset``.

    Args:
        most: Largest number of images.
        folder: A folder; None for `calibration_images`, without an error if there are fewer.

    Returns:
        Where they are from, and their paths.

    Raises:
        DataError: There is none, or a file is not a complete image.
    """
    if folder is None:
        name, files = _training_images()
        if not files:
            raise DataError(f"{name} has no images")
        require_images(files[:most])
        return name, files[:most]
    return folder, find_images(None, folder, "Pruner.calibration.folder")[:most]


def labelled_batches(cfg: Any, most: int) -> tuple[int, Iterator[dict[str, Any]]]:
    """The first images of ``TrainDataset`` as a training gets them, but in their order.

    ``TrainReader`` draws its augmentations from the random numbers of this process.

    Args:
        cfg: ppdet's configuration.
        most: Largest number of images.

    Returns:
        Number of images, and their batches; the last one may be smaller.

    Raises:
        DataError: ``TrainDataset`` cannot be read, or has no labels.
    """
    check_dataset(cfg, "TrainDataset")
    dataset = _parsed("TrainDataset")
    if not any("gt_bbox" in record for record in dataset.roidbs):
        raise DataError("TrainDataset has no labels; expected boxes for its images")
    order = range(min(most, len(dataset.roidbs)))
    return len(order), _prepared(create("TrainReader"), dataset, order)


def run_images(
    model: paddle.nn.Layer, cfg: Any, images: list[str], label: str
) -> Iterator[dict[str, Any]]:
    """Run a detector on images with a progress bar, at the size at which it will be deployed.

    Yields:
        The outputs for each image, after it has run. The model is in evaluation mode meanwhile.
    """
    with evaluation_mode(model), paddle.no_grad():
        batches = image_batches(cfg, images, target_size_hw(cfg))
        for _, batch in tqdm(batches, label, len(images), unit="image", disable=None, leave=False):
            yield model(batch)


def _prepared(reader: Any, dataset: Any, order: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Batches of a data set in a fixed order, without the threads that a loader would start.

    They read ahead, and so draw random numbers at any time.
    """
    dataset.set_transform(reader._sample_transforms)
    dataset.set_kwargs(**reader.kwargs)
    for first in range(0, len(order), reader.batch_size):
        batch = read_batch(reader, dataset, order[first : first + reader.batch_size])
        yield paddle.utils.map_structure(
            lambda value: paddle.to_tensor(value) if isinstance(value, np.ndarray) else value, batch
        )


def _training_images() -> tuple[str, list[str]]:
    """Files of ``TrainDataset``; of ``EvalDataset`` if it cannot be read."""
    try:
        return "TrainDataset", _files_of("TrainDataset")
    except DataError as error:
        logger.warning("calibration on EvalDataset: %s", error)
        return "EvalDataset", _files_of("EvalDataset")


def _files_of(name: str) -> list[str]:
    """Image files of a data set, in the order of its annotation file."""
    return [str(record["im_file"]) for record in _parsed(name).roidbs]


def _parsed(name: str) -> Any:
    """A data set that has read its annotation file."""
    try:
        # An instance that the configuration names with a tag is also that of a running training.
        dataset = copy.copy(create(name)())
        with quiet_stdout():
            dataset.parse_dataset()
    except (OSError, ValueError, AssertionError, LookupError, TypeError) as error:
        raise DataError(f"{name} cannot be read ({reason_of(error)})") from error
    return dataset
