"""Several processes: who measures what, and what happens when one of them dies."""

from __future__ import annotations

import multiprocessing
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slim_det.config import load_config
from slim_det.errors import SensitivityError
from slim_det.prune.pruner import Pruner
from slim_det.sensitivity.candidates import Cut, Target, make_targets
from slim_det.sensitivity.measure import Images, Job, measure_cuts
from slim_det.sensitivity.tails import DetectorProgram, save_program
from slim_det.sensitivity.workers import (
    Source,
    _threads_of_children,
    measure_in_processes,
    split_job,
)
from tests.support import restored_config
from tests.trained import Detector

TIPS = ["neck.yolo_block.0.tip", "neck.yolo_block.1.tip", "neck.yolo_block.2.tip"]


def job_of(costs: list[int], cuts: int) -> Job:
    """A group for each cost, with so many cuts each."""
    targets = [
        Target(
            f"g{i}", 8, ("w",), cost, tuple(Cut(f"g{i}", r / 10, {}) for r in range(1, cuts + 1))
        )
        for i, cost in enumerate(costs)
    ]
    return Job("", tuple(targets), num_images=4, chunk_images=4, threads=3)


def names_of(job: Job) -> list[str]:
    return [cut.name for target in job.targets for cut in target.cuts]


def test_nothing_to_do_makes_no_jobs() -> None:
    assert split_job(job_of([], 3), 2) == []
    assert split_job(job_of([5], 0), 2) == []


def test_one_part_is_the_job() -> None:
    job = job_of([5, 7], 2)
    assert split_job(job, 1) == [job]


def test_costly_groups_are_split_too() -> None:
    """9 + 9 against 9 + 3 x 3: the first group's last cut goes to the second part."""
    first, second = split_job(job_of([9, 3], 3), 2)
    assert names_of(first) == ["g0@0.1", "g0@0.2"]
    assert names_of(second) == ["g0@0.3", "g1@0.1", "g1@0.2", "g1@0.3"]
    assert (first.threads, first.num_images) == (3, 4)


@given(st.lists(st.integers(0, 50), max_size=6), st.integers(1, 4), st.integers(1, 8))
def test_parts_hold_every_cut_once_and_in_order(costs: list[int], cuts: int, parts: int) -> None:
    job = job_of(costs, cuts)
    jobs = split_job(job, parts)
    assert len(jobs) <= parts and all(names_of(part) for part in jobs)
    assert [name for part in jobs for name in names_of(part)] == names_of(job)


@pytest.mark.parametrize("before", [None, "7"])
def test_threads_of_children_are_put_back(
    monkeypatch: pytest.MonkeyPatch, before: str | None
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if before:
        monkeypatch.setenv("OMP_NUM_THREADS", before)
    with _threads_of_children(3):
        assert os.environ["OMP_NUM_THREADS"] == "3"
    assert os.environ.get("OMP_NUM_THREADS") == before


@pytest.fixture(scope="module")
def work(
    tmp_path_factory: pytest.TempPathFactory, detector: Detector, traced_detector: Any
) -> tuple[Source, Job]:
    """Nine cuts of a saved detector."""
    folder = tmp_path_factory.mktemp("workers")
    with restored_config():
        save_program(traced_detector[0], (96, 96), folder)
    targets = make_targets(*traced_detector, TIPS, [0.25, 0.5, 0.75], Pruner(pruned_ratios=0.5))
    job = Job(str(folder), tuple(targets), num_images=6, chunk_images=4)
    return Source(str(detector.config), ()), job


def workers() -> list[Any]:
    """Processes that were spawned; those that read images are forked."""
    context = multiprocessing.get_context("spawn")
    return [p for p in multiprocessing.active_children() if isinstance(p, context.Process)]


def test_two_processes_find_what_one_finds(work: tuple[Source, Job]) -> None:
    """Unit by unit, the matches of every image."""
    source, job = work
    one: dict[str, Any] = {}
    with restored_config():
        images = Images(load_config(source.config), None, 4)
        measure_cuts(images, DetectorProgram(job.folder, 1), job, one.__setitem__)
    two: dict[str, Any] = {}
    measure_in_processes(source, split_job(job, 2), two.__setitem__)
    assert two == one and len(one) == 18
    assert not workers()


def test_killed_worker_is_an_error_that_keeps_what_is_finished(work: tuple[Source, Job]) -> None:
    """SIGKILL after the first unit: what was reported came whole, and no process is left."""
    source, job = work
    found: dict[str, Any] = {}

    def finished(key: str, value: dict[str, Any]) -> None:
        found[key] = value
        workers()[0].kill()

    with pytest.raises(SensitivityError, match="a worker ended with exit code -9") as caught:
        measure_in_processes(source, split_job(job, 1), finished)
    assert "\n" not in str(caught.value)
    assert found and all(len(value["images"]) in (2, 4) for value in found.values())
    assert not workers()


def test_error_in_a_worker_is_told(work: tuple[Source, Job], tmp_path: Path) -> None:
    """In one line, with what the worker said."""
    source, job = work
    missing = replace(job, folder=str(tmp_path / "missing"))
    with pytest.raises(SensitivityError, match="^a worker failed: .*") as caught:
        measure_in_processes(source, [missing], dict[str, Any]().__setitem__)
    assert "\n" not in str(caught.value)
    assert not workers()
