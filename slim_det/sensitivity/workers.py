"""Measures candidates in several processes on one machine; one of them alone writes."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import pickle
import queue
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from slim_det.errors import SensitivityError
from slim_det.sensitivity.grid import split

if TYPE_CHECKING:
    from slim_det.sensitivity.measure import Finished, Job

POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Source:
    """Where a process reads the configuration from.

    Attributes:
        config: Path of the YAML file.
        overrides: ``Key.sub=value`` texts.
    """

    config: str
    overrides: tuple[str, ...]


def split_job(job: Job, parts: int) -> list[Job]:
    """Give each of so many parts cuts in a row that cost about the same.

    Args:
        job: Everything there is to measure.
        parts: How many parts.

    Returns:
        At most so many jobs; none is empty.
    """
    cuts = [(target, cut) for target in job.targets for cut in target.cuts]
    jobs = []
    for places in split([float(target.macs) for target, _ in cuts], parts):
        chosen = [cuts[place][1].name for place in places]
        targets = [
            replace(target, cuts=tuple(c for c in target.cuts if c.name in chosen))
            for target in job.targets
        ]
        if chosen:
            jobs.append(replace(job, targets=tuple(t for t in targets if t.cuts)))
    return jobs


def measure_in_processes(source: Source, jobs: Sequence[Job], finished: Finished) -> None:
    """Run each job in a process of its own.

    Args:
        source: The configuration.
        jobs: One a process.
        finished: Called in this process with each unit, in the order of their ends.

    Raises:
        SensitivityError: A process failed or was killed; its finished units were reported.
    """
    context = multiprocessing.get_context("spawn")
    units: Any = context.Queue()
    with _threads_of_children(jobs[0].threads):
        processes = [
            # As bytes: a job's own module imports paddle, which the process must prepare first.
            context.Process(
                target=_run, args=(pickle.dumps((source, job)), units, os.getpid()), daemon=True
            )
            for job in jobs
        ]
        for process in processes:
            process.start()
    try:
        running = len(processes)
        while running:
            try:
                key, value = units.get(timeout=POLL_SECONDS)
            except queue.Empty:
                _check_alive(processes)
                continue
            if key is None:
                running -= 1
                if value:
                    raise SensitivityError(f"a worker failed: {value}")
            else:
                finished(key, value)
        for process in processes:
            process.join()
    finally:
        for process in processes:
            process.kill()
            process.join()  # none may write into a folder that is about to go


def _check_alive(processes: Sequence[Any]) -> None:
    for process in processes:
        if process.exitcode:
            raise SensitivityError(
                f"a worker ended with exit code {process.exitcode}, perhaps for lack of memory; "
                "run again with fewer --workers or a smaller --cache_mb: finished points are kept"
            )


def _run(work: bytes, units: Any, parent: int) -> None:
    """What a process does; it ends by itself when the one that started it has gone."""
    from slim_det.cli.process import prepare_process

    prepare_process()
    for name in ("slim_det", "ppdet"):
        logging.getLogger(name).setLevel(logging.ERROR)

    def report(key: str, value: dict[str, Any]) -> None:
        if os.getppid() != parent:
            os._exit(1)
        units.put((key, value))

    try:
        source, job = pickle.loads(work)  # noqa: S301 (bytes of the process that started this one)
        _measure(source, job, report)
        units.put((None, ""))
    except Exception as error:  # whatever it is, the other process must hear of it
        text = " ".join(str(error).split())[:300]
        units.put((None, f"{type(error).__name__}: {text}"))
    except KeyboardInterrupt:
        os._exit(130)


def _measure(source: Source, job: Job, report: Finished) -> None:
    from slim_det import session
    from slim_det.config import load_config
    from slim_det.sensitivity.measure import Images, measure_cuts
    from slim_det.sensitivity.tails import DetectorProgram

    # A reader of its own would be a child of this process, which may have none.
    cfg = load_config(source.config, [*source.overrides, "worker_num=0"])
    session.set_device(cfg)
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("ppdet"):
            logging.getLogger(name).setLevel(logging.ERROR)
    images = Images(cfg, job.num_images, job.chunk_images)
    measure_cuts(images, DetectorProgram(job.folder, job.threads), job, report)


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
