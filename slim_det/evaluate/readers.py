"""Errors in ppdet's readers: an image that cannot be prepared ends a command with one line.

Paddle's loader prepares batches in a thread, or in worker processes. An error that leaves the
thread does not close the queue at which the main thread waits, so the command hangs. An error of a
worker process prints tracebacks and reaches the main thread without its cause. So nothing is raised
there: an error becomes a batch of its own, and is raised where that batch is taken.
"""

from __future__ import annotations

import copy
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import paddle
import ppdet.data.reader as ppdet_reader
from paddle.io import DataLoader, Dataset

from slim_det.core.errors import DataError, SlimDetError, one_line

_FAILURE = "reader_failure"
"""Key of a batch that holds the text of an error."""

_SHOWN = 3

_NO_TENSOR = ("uint32", "uint64")
"""Numbers of numpy that Paddle's tensors cannot hold; nor can they hold objects or text."""

_make_batch_of_ppdet = ppdet_reader.BatchCompose.__call__
_prepare_of_ppdet = ppdet_reader.BaseDataLoader.__call__


def report_errors() -> None:
    """Let ppdet's readers raise `DataError` in the main thread, with the image and the step."""
    ppdet_reader.Compose.__call__ = _apply_steps
    ppdet_reader.BatchCompose.__call__ = _make_batch
    ppdet_reader.DataLoader = _Loader
    ppdet_reader.BaseDataLoader.__call__ = _prepare


def read_batch(reader: Any, dataset: Any, indices: Sequence[int]) -> Any:
    """Prepare one batch in this thread.

    Args:
        reader: A ppdet reader.
        dataset: A parsed data set that has the reader's transforms.
        indices: Which images.

    Raises:
        DataError: An image cannot be prepared.
    """
    records = _Records(dataset)
    samples = [records[index] for index in indices]
    return _checked(type(reader).__name__, _Batches(reader._batch_transforms)(samples))


class StepError(DataError):
    """A step of a reader failed.

    Args:
        step: Name of the transform.
        files: The images that it may have failed on.
        reason: Why.
    """

    def __init__(self, step: str, files: Sequence[str], reason: str) -> None:
        self.step, self.files, self.reason = step, tuple(files), reason
        super().__init__(f"{step} failed{_on(files)}: {reason}")


class _Sample(dict):
    """A prepared image that knows its file, which ppdet drops once it is read."""

    file = ""


class _Records(Dataset):
    """A data set whose elements are `_Sample`, or the error that preparing one has raised."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Any:
        records = self._dataset.roidbs
        file = str(records[index % len(records)].get("im_file", f"image {index}"))
        try:
            sample = _Sample(self._dataset[index])
        except StepError as error:  # without its traceback, which would keep the loader alive
            return StepError(error.step, error.files, error.reason)
        except Exception as error:
            return StepError(type(self._dataset).__name__, [file], _reason(error))
        sample.file = file
        return sample


class _Batches:
    """Makes a batch of `_Records`, or a batch that holds the text of an error."""

    def __init__(self, make: Callable[[list[Any]], Any]) -> None:
        self._make = make

    def __call__(self, samples: list[Any]) -> Any:
        for sample in samples:
            if isinstance(sample, StepError):
                return _failed(sample)
        try:
            batch = self._make(samples)
            _require_tensors(batch)
        except Exception as error:
            return _failed(error)
        return batch


def _failed(error: Exception) -> dict[str, Any]:
    """A batch that holds an error. Paddle's queue takes tensors only; text travels beside them."""
    return {_FAILURE: _reason(error), "image": np.zeros(1, "float32")}


class _Loader(DataLoader):
    """Paddle's loader, which raises the errors that batches hold."""

    reader = "a reader"

    def __init__(self, dataset: Any, collate_fn: Any, **options: Any) -> None:
        super().__init__(_Records(dataset), collate_fn=_Batches(collate_fn), **options)

    def __iter__(self) -> Iterator[Any]:
        return _Iteration(self, super().__iter__())


class _Iteration:
    """One pass through a loader."""

    def __init__(self, loader: _Loader, batches: Any) -> None:
        self._loader, self._batches = loader, batches

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            return _checked(self._loader.reader, next(self._batches))
        except DataError:
            self._stop()
            raise
        except SystemError as error:  # of Paddle's queue, after a worker process was killed
            self._stop()
            raise DataError(
                f"{self._loader.reader}: a worker process has ended, perhaps for lack of memory; "
                "try a smaller worker_num or batch_size"
            ) from error

    def _stop(self) -> None:
        """End the thread and the worker processes.

        Paddle does so when the iterator is deleted. If that is when Python ends, it may try to
        start a thread, which then never starts, and waits for it.
        """
        stop = getattr(self._batches, "_shutdown_on_exit", self._batches._try_shutdown_all)
        stop()


def _prepare(reader: Any, *args: Any, **settings: Any) -> Any:
    """`BaseDataLoader.__call__`: ppdet's; the loader learns the name of the reader."""
    _prepare_of_ppdet(reader, *args, **settings)
    reader.dataloader.reader = type(reader).__name__
    return reader


def _checked(reader: str, batch: Any) -> Any:
    if isinstance(batch, dict) and _FAILURE in batch:
        raise DataError(f"{reader}: {batch[_FAILURE]}")
    return batch


def _apply_steps(compose: Any, data: Any) -> Any:
    """`Compose.__call__`: the transforms in order, without a traceback in the log.

    Raises:
        StepError: A transform failed.
    """
    files = _files(data)
    for step in compose.transforms_cls:
        try:
            data = step(data)
        except StepError as error:  # of a transform that has others
            raise StepError(error.step, error.files or files, error.reason) from error
        except Exception as error:
            name = type(step).__name__
            unreadable = [] if name != "Decode" else [f for f in files if _is_no_image(f)]
            reason = "OpenCV cannot read it as an image" if unreadable else _reason(error)
            raise StepError(name, unreadable[:1] or files, reason) from error
    return data


def _make_batch(compose: Any, samples: list[Any]) -> Any:
    """`BatchCompose.__call__`: `_apply_steps`, then ppdet's way from samples to a batch.

    Raises:
        StepError: A transform failed, or the images of the batch have different shapes.
    """
    files = _files(samples)
    samples = _apply_steps(compose, samples)
    without_steps = copy.copy(compose)
    without_steps.transforms_cls = []
    try:
        return _make_batch_of_ppdet(without_steps, samples)
    except Exception as error:
        raise _misfit(samples, files) or StepError("batching", files, _reason(error)) from error


def _misfit(samples: Sequence[Any], files: Sequence[str]) -> StepError | None:
    """The first image that has another shape than the first one of its batch."""
    for key in samples[0]:
        shapes = [list(np.shape(sample.get(key))) for sample in samples]
        for shape, file in zip(shapes, files):
            if shape != shapes[0]:
                return StepError(
                    "batching",
                    [file],
                    f"the shape of '{key}' is {shape}, that of '{files[0]}' in the same batch "
                    f"{shapes[0]}; expected one shape, from a resize with keep_ratio: false, or "
                    "from a transform that pads",
                )
    return None


def _require_tensors(batch: Any) -> None:
    """Refuse what Paddle's loader cannot turn into tensors, which it would do in its thread."""
    for key, part in batch.items() if isinstance(batch, dict) else ():
        for value in paddle.utils.flatten(part):
            if isinstance(value, np.ndarray) and (
                value.dtype.kind not in "biufc" or value.dtype.name in _NO_TENSOR
            ):
                raise DataError(f"'{key}' of a batch has the type {value.dtype}; expected numbers")


def _files(data: Any) -> list[str]:
    """Files of the images in a record, a sample, or a list of them."""
    parts = data if isinstance(data, Sequence) else [data]
    found = [getattr(part, "file", None) or part.get("im_file") for part in parts]
    return [str(file) for file in found if file]


def _on(files: Sequence[str]) -> str:
    if len(files) < 2:
        return "".join(f" on '{file}'" for file in files)
    names = ", ".join(f"'{file}'" for file in files[:_SHOWN])
    return f" on one of {len(files)} images: {names}{', ...' if len(files) > _SHOWN else ''}"


def _is_no_image(file: str) -> bool:
    # Of a file that is missing, OpenCV would print a line of its own.
    return Path(file).is_file() and cv2.imread(file) is None


def _reason(error: Exception) -> str:
    text, kind = one_line(error), type(error).__name__
    if isinstance(error, SlimDetError):
        return text
    if not text:  # as of the assertions in ppdet's transforms
        text = traceback.extract_tb(error.__traceback__)[-1].line or ""
    return f"{kind}: {text}"
