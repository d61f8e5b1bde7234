"""Processes that run the tails of cuts; they read no images, and one other process writes."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import pickle
import queue
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from slim_det.errors import SensitivityError
from slim_det.sensitivity.grid import split

if TYPE_CHECKING:
    from slim_det.sensitivity.candidates import Target
    from slim_det.sensitivity.tails import Arrays, DetectorProgram

POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Task:
    """What one process has to run.

    Attributes:
        program: Folder of the detector's program.
        frontiers: Folder of what enters its tails, a file a batch and variable.
        names: The variables, in the order of their files.
        batches: How many.
        targets: Groups with the cuts to run.
        threads: CPU threads.
    """

    program: str
    frontiers: str
    names: tuple[str, ...]
    batches: int
    targets: tuple[Target, ...]
    threads: int


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
        self._threads = threads
        self._results: Any = context.Queue()
        self._pipes, self._processes = [], []
        with _threads_of_children(threads):
            for _ in range(count):
                receiver, sender = context.Pipe(duplex=False)
                process: Any = context.Process(
                    target=_serve, args=(receiver, self._results, os.getpid()), daemon=True
                )
                process.start()
                receiver.close()
                self._pipes.append(sender)
                self._processes.append(process)

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in self._processes:
            process.kill()
            process.join()  # none may write into a folder that is about to go

    def run(
        self, program: DetectorProgram, frontiers: Sequence[Arrays], targets: Sequence[Target]
    ) -> Iterator[tuple[str, list[np.ndarray]]]:
        """Run every cut on every batch.

        Args:
            program: The detector.
            frontiers: For every batch, at least what enters the tails of the targets.
            targets: Groups with the cuts to run.

        Yields:
            Name of a cut and the boxes of every image, float32 [n, 6] each, as they are done.
        """
        names = program.frontier(targets)
        folder = Path(tempfile.mkdtemp(dir=program.folder))
        try:
            for i, frontier in enumerate(frontiers):
                for k, name in enumerate(names):
                    np.save(_file(folder, i, k), frontier[name])
            whole = Task(str(program.folder), str(folder), names, len(frontiers), (), self._threads)
            parts = split_targets(targets, len(self._processes))
            for pipe, part in zip(self._pipes, parts):
                # As bytes: the modules of a task import paddle, which the process prepares first.
                pipe.send_bytes(pickle.dumps(replace(whole, targets=part)))
            yield from self._received(len(parts))
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _received(self, running: int) -> Iterator[tuple[str, list[np.ndarray]]]:
        while running:
            try:
                name, value = self._results.get(timeout=POLL_SECONDS)
            except queue.Empty:
                self._check_alive()
                continue
            if name is not None:
                yield name, value
                continue
            running -= 1
            if value:
                raise SensitivityError(f"a worker failed: {value}")

    def _check_alive(self) -> None:
        for process in self._processes:
            if process.exitcode is not None:
                raise SensitivityError(
                    f"a worker ended with exit code {process.exitcode}, perhaps for lack of "
                    "memory; run again with fewer --workers or a smaller --cache_mb: finished "
                    "points are kept"
                )


def split_targets(targets: Sequence[Target], parts: int) -> list[tuple[Target, ...]]:
    """Give each of so many parts cuts in a row that cost about the same.

    Args:
        targets: Groups with their cuts.
        parts: How many parts.

    Returns:
        At most so many parts; none is empty.
    """
    # Here, because the processes import this module before they have prepared paddle.
    from slim_det.sensitivity.candidates import keep_cuts

    cuts = [(target, cut) for target in targets for cut in target.cuts]
    parts_of_names = [
        {cuts[place][1].name for place in places}
        for places in split([float(target.macs) for target, _ in cuts], parts)
    ]
    return [
        keep_cuts(targets, lambda cut: cut.name in names)  # noqa: B023 (called at once)
        for names in parts_of_names
        if names
    ]


def _serve(tasks: Any, results: Any, parent: int) -> None:
    """What a process does; it ends by itself when the one that started it has gone."""
    from slim_det.cli.process import set_environment
    from slim_det.quiet import silenced

    set_environment()
    logging.getLogger("slim_det").setLevel(logging.ERROR)
    with silenced():
        import paddle  # noqa: F401

    try:
        while True:
            task = pickle.loads(tasks.recv_bytes())  # noqa: S301 (from the starting process)
            for result in _run(task):
                if os.getppid() != parent:
                    os._exit(1)
                results.put(result)
            results.put((None, ""))
    except EOFError:
        os._exit(0)
    except KeyboardInterrupt:
        os._exit(130)
    except Exception as error:  # whatever it is, the other process must hear of it
        results.put((None, " ".join(f"{type(error).__name__}: {error}".split())))


def _run(task: Task) -> Iterator[tuple[str, list[np.ndarray]]]:
    from slim_det.sensitivity.tails import DetectorProgram

    program, folder = DetectorProgram(task.program, task.threads), Path(task.frontiers)
    for target in task.targets:
        frontiers = [
            {n: np.load(_file(folder, i, task.names.index(n))) for n in program.frontier([target])}
            for i in range(task.batches)
        ]
        for cut, boxes in program.run_cuts(target, frontiers):
            yield cut.name, boxes


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
