"""Processes that run partial programs; they read no images, and one other process writes."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import multiprocessing
import os
import pickle
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from slim_det.core.errors import SensitivityError
from slim_det.planning.sensitivity.grid import split

if TYPE_CHECKING:
    from slim_det.planning.sensitivity.cuts import Target
    from slim_det.planning.sensitivity.partial_inference import Arrays, DetectorProgram


@dataclass(frozen=True)
class Task:
    """What one process has to run before it takes the next.

    Attributes:
        program: Folder of the detector's program.
        cached_activations: Folder of its inputs, one file a batch and variable.
        names: The variables, in the order of their files.
        batches: How many.
        target: A group with the cuts to run.
    """

    program: str
    cached_activations: str
    names: tuple[str, ...]
    batches: int
    target: Target


class Workers:
    """So many processes, started at once: they import paddle while others prepare the work.

    Args:
        count: How many.
        threads: CPU threads of each.

    Raises:
        SensitivityError: While running: a process failed or was killed.
    """

    def __init__(self, count: int, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._processes: dict[Any, Any] = {}  # the end of a pipe that is held here -> its process
        with _threads_of_children(threads):
            for _ in range(count):
                here, there = context.Pipe()
                process: Any = context.Process(target=_serve, args=(there, threads), daemon=True)
                process.start()
                there.close()
                self._processes[here] = process

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in self._processes.values():
            process.kill()
            process.join()  # none may write into a folder that is about to go

    def run(
        self,
        program: DetectorProgram,
        cached_activations: Sequence[Arrays],
        targets: Sequence[Target],
    ) -> Iterator[tuple[str, list[np.ndarray]]]:
        """Run every cut on every batch.

        Args:
            program: The detector.
            cached_activations: For every batch, what enters the partial programs of the targets.
            targets: Groups with the cuts to run.

        Yields:
            Name of a cut and the boxes of every image, float32 [n, 6] each, as they are done.
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

    def _served(self, tasks: Sequence[Task]) -> Iterator[tuple[str, list[np.ndarray]]]:
        """Each process gets a task, and the next one when it is done with it."""
        left, running = list(reversed(tasks)), set()
        for pipe in list(self._processes)[: len(left)]:
            self._send(pipe, left.pop())
            running.add(pipe)
        while running:
            for pipe in wait(list(running)):
                name, value = self._receive(pipe)
                if name is not None:
                    yield name, value
                elif value:
                    raise SensitivityError(f"a worker failed: {value}")
                elif left:
                    self._send(pipe, left.pop())
                else:
                    running.remove(pipe)

    def _send(self, pipe: Any, task: Task) -> None:
        try:
            # As bytes: the modules of a task import paddle, which the process prepares first.
            pipe.send_bytes(pickle.dumps(task))
        except OSError:
            raise self._died(pipe) from None

    def _receive(self, pipe: Any) -> Any:
        try:
            return pipe.recv()
        except (EOFError, OSError):
            raise self._died(pipe) from None

    def _died(self, pipe: Any) -> SensitivityError:
        process = self._processes[pipe]
        process.join()
        return SensitivityError(
            f"a worker ended with exit code {process.exitcode}, perhaps for lack of memory; run "
            "again with fewer --workers or a smaller --cache_mb: finished points are kept"
        )


def threads_each(workers: int) -> int:
    """CPU threads of one of so many processes."""
    return max(1, (os.cpu_count() or 1) // workers)


def divide(targets: Sequence[Target], processes: int) -> list[Target]:
    """Parts of the work for processes that take one after the other, the dearest first.

    Args:
        targets: Groups with their cuts.
        processes: How many.

    Returns:
        The groups; one that costs more than half a process's share is given in parts.
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
    """What a process does; it ends by itself when the one that started it has gone."""
    from slim_det.core.process import set_environment
    from slim_det.core.silence import silenced

    set_environment()
    logging.getLogger("slim_det").setLevel(logging.ERROR)
    with silenced():
        import paddle  # noqa: F401

    try:
        while True:
            task = pickle.loads(pipe.recv_bytes())  # noqa: S301 (from the starting process)
            for message in _messages(task, threads):
                pipe.send(message)
    except (EOFError, ConnectionError):
        os._exit(0)
    except KeyboardInterrupt:
        os._exit(130)


def _messages(task: Task, threads: int) -> Iterator[tuple[str | None, Any]]:
    """Every cut with its boxes, then None with what went wrong, or with nothing."""
    try:
        yield from _run(task, threads)
        yield None, ""
    except Exception as error:  # whatever it is, the other process must hear of it
        yield None, " ".join(f"{type(error).__name__}: {error}".split())


def _run(task: Task, threads: int) -> Iterator[tuple[str, list[np.ndarray]]]:
    program, folder = _program(task.program, threads), Path(task.cached_activations)
    names = program.cached_variables([task.target])
    cached_activations = [
        {name: np.load(_file(folder, i, task.names.index(name))) for name in names}
        for i in range(task.batches)
    ]
    for cut, boxes in program.run_cuts(task.target, cached_activations):
        yield cut.name, boxes


@functools.lru_cache(maxsize=1)
def _program(folder: str, threads: int) -> DetectorProgram:
    from slim_det.planning.sensitivity.partial_inference import DetectorProgram

    return DetectorProgram(folder, threads)


def _file(folder: Path, batch: int, place: int) -> Path:
    return folder / f"{batch}-{place}.npy"


@contextlib.contextmanager
def _threads_of_children(threads: int) -> Iterator[None]:
    """Processes started meanwhile run so many threads; Paddle reads this when it is imported."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(threads)
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before
