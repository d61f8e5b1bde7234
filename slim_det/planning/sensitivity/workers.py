"""Processes that run partial programs; reading images and writing is left to their owner.

`concurrent.futures` would need fewer lines, but a worker that is killed while it sends a result (on
Python 3.9 and 3.10 also while tasks are queued) can block the caller for ever. Here each process
has a pipe of its own, which ends when the process does.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import multiprocessing
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from slim_det.core.errors import SensitivityError, one_line
from slim_det.planning.sensitivity.cuts import Target
from slim_det.planning.sensitivity.grid import split

if TYPE_CHECKING:
    from slim_det.evaluate.detections import Detections
    from slim_det.planning.sensitivity.partial_inference import Arrays, DetectorProgram


@dataclass(frozen=True)
class Task:
    """The work that one process does at a time.

    Attributes:
        program: Folder of the detector's program.
        cached_activations: Folder of its inputs, one file per batch and variable.
        names: The variables, in the order of their files.
        batches: Number of batches.
        target: A group with the cuts to run.
    """

    program: str
    cached_activations: str
    names: tuple[str, ...]
    batches: int
    target: Target


class Workers:
    """Worker processes, started at once: they import paddle while the work is being prepared.

    Args:
        count: Number of processes.
        threads: CPU threads of each.

    Raises:
        SensitivityError: While running: a process failed or was killed.
    """

    def __init__(self, count: int, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._processes: dict[Any, Any] = {}  # this end of a pipe -> its process
        for _ in range(count):
            here, there = context.Pipe()
            self._processes[here] = context.Process(
                target=_serve, args=(there, threads), daemon=True
            )
            self._processes[here].start()
            there.close()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *error: object) -> None:
        for process in self._processes.values():
            process.kill()
            process.join()  # none may write into a folder that is about to be removed

    def run(
        self,
        program: DetectorProgram,
        cached_activations: Sequence[Arrays],
        targets: Sequence[Target],
    ) -> Iterator[tuple[str, list[Detections]]]:
        """Run every cut on every batch.

        Args:
            program: The detector.
            cached_activations: For every batch, what enters the partial programs of the targets.
            targets: Groups with the cuts to run.

        Yields:
            Name of a cut and the boxes of every image, in the order in which cuts are done.
        """
        names = program.cached_variables(targets)
        folder = Path(tempfile.mkdtemp(dir=program.folder))
        try:
            for i, cached in enumerate(cached_activations):
                for k, name in enumerate(names):
                    np.save(_file(folder, i, k), cached[name])
            yield from self._served(
                [
                    Task(str(program.folder), str(folder), names, len(cached_activations), part)
                    for part in divide(targets, len(self._processes))
                ]
            )
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _served(self, tasks: Sequence[Task]) -> Iterator[tuple[str, list[Detections]]]:
        """Give each process a task, and the next one when it is done."""
        left, idle = list(reversed(tasks)), list(self._processes)
        busy: set[Any] = set()
        while left or busy:
            while left and idle:
                pipe = idle.pop()
                with contextlib.suppress(OSError):  # if it has died, receiving will fail
                    pipe.send(left.pop())
                busy.add(pipe)
            for pipe in wait(list(busy)):
                name, value = self._receive(pipe)
                if name is not None:
                    yield name, value
                elif value:
                    raise SensitivityError(f"a worker failed: {value}")
                else:
                    busy.remove(pipe)
                    idle.append(pipe)

    def _receive(self, pipe: Any) -> Any:
        try:
            return pipe.recv()
        except (EOFError, OSError):
            process = self._processes[pipe]
            process.join()
            raise SensitivityError(
                f"a worker ended with exit code {process.exitcode}, perhaps for lack of memory; "
                "run again with fewer --workers or a smaller --cache_mb: finished points are kept"
            ) from None


def threads_each(workers: int) -> int:
    """CPU threads for each of several processes."""
    return max(1, (os.cpu_count() or 1) // workers)


def divide(targets: Sequence[Target], processes: int) -> list[Target]:
    """Divide work among processes; the most expensive part comes first.

    A group that costs more than half a process's share is divided into several targets.
    """
    most = sum(map(_cost, targets)) / (2 * processes)
    parts = []
    for target in targets:
        count = min(len(target.cuts), max(1, math.ceil(_cost(target) / most))) if most else 1
        for places in split([1.0] * len(target.cuts), count):
            parts.append(replace(target, cuts=target.cuts[places.start : places.stop]))
    return sorted(parts, key=_cost, reverse=True)


def _cost(target: Target) -> int:
    return target.macs * len(target.cuts)


def _serve(pipe: Any, threads: int) -> None:
    """Run tasks until the owner of the pipe is gone."""
    from slim_det.core.process import set_environment
    from slim_det.core.silence import silenced

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the owner ends this process
    os.environ["OMP_NUM_THREADS"] = str(threads)
    set_environment()
    logging.getLogger("slim_det").setLevel(logging.ERROR)
    with silenced():
        import paddle  # noqa: F401

    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            for message in _messages(pipe.recv(), threads):
                pipe.send(message)
    os._exit(0)


def _messages(task: Task, threads: int) -> Iterator[tuple[str | None, Any]]:
    """Every cut with its boxes, then None with the error, or with '' if there was none."""
    try:
        program, folder = _program(task.program, threads), Path(task.cached_activations)
        names = program.cached_variables([task.target])
        files = [(name, task.names.index(name)) for name in names]
        cached_activations = [
            {name: np.load(_file(folder, i, k), mmap_mode="r") for name, k in files}
            for i in range(task.batches)
        ]
        for cut, boxes in program.run_cuts(task.target, cached_activations):
            yield cut.name, boxes
        yield None, ""
    except Exception as error:  # whatever it is, the owner must hear of it
        yield None, one_line(f"{type(error).__name__}: {error}")


@functools.lru_cache(maxsize=1)
def _program(folder: str, threads: int) -> DetectorProgram:
    from slim_det.planning.sensitivity.partial_inference import DetectorProgram

    return DetectorProgram(folder, threads)


def _file(folder: Path, batch: int, place: int) -> Path:
    return folder / f"{batch}-{place}.npy"
