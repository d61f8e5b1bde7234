"""Several processes: who measures what, and what happens when one of them dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slim_det.compress.prune.pruner import Pruner
from slim_det.core.errors import SensitivityError
from slim_det.evaluate.detections import Detections
from slim_det.planning.sensitivity.candidates import make_targets
from slim_det.planning.sensitivity.cuts import Cut, Target
from slim_det.planning.sensitivity.measure import Images, Job, measure_baseline
from slim_det.planning.sensitivity.partial_inference import DetectorProgram, save_program
from slim_det.planning.sensitivity.workers import Workers, divide, threads_each
from slim_det.training.config import load_config
from tests.commands import process_environment
from tests.detections import rows_of
from tests.support import restored_config
from tests.trained import Detector

TIPS = ["neck.yolo_block.0.tip", "neck.yolo_block.1.tip", "neck.yolo_block.2.tip"]


def targets_of(costs: list[int], cuts: int) -> tuple[Target, ...]:
    """A group for each cost, with the same number of cuts."""
    return tuple(
        Target(
            f"g{i}", 8, ("w",), cost, tuple(Cut(f"g{i}", r / 10, {}) for r in range(1, cuts + 1))
        )
        for i, cost in enumerate(costs)
    )


def names_of(targets: tuple[Target, ...]) -> list[str]:
    return [cut.name for target in targets for cut in target.cuts]


def test_nothing_to_do_makes_no_parts() -> None:
    assert divide(targets_of([], 3), 2) == []


def test_one_process_gets_all_groups_dearest_first() -> None:
    """5 x 2 and 7 x 2 are 24; only what costs more than 12 is given in parts."""
    first, second, third = divide(targets_of([5, 7], 2), 1)
    assert names_of((first, second, third)) == ["g0@0.1", "g0@0.2", "g1@0.1", "g1@0.2"]
    assert (first.name, second.name, third.name) == ("g0", "g1", "g1")


def test_costly_groups_are_given_in_parts() -> None:
    """27 and 9 for two processes: none costs more than a quarter of 36."""
    parts = divide(targets_of([9, 3], 3), 2)
    assert list(map(names_of, [(part,) for part in parts])) == [
        ["g0@0.1"],
        ["g0@0.2"],
        ["g0@0.3"],
        ["g1@0.1", "g1@0.2", "g1@0.3"],
    ]


def test_groups_that_cost_nothing_stay_in_one_part() -> None:
    targets = targets_of([0, 0], 3)
    assert divide(targets, 2) == list(targets)


@given(st.lists(st.integers(0, 50), max_size=6), st.integers(1, 4), st.integers(1, 8))
def test_parts_hold_every_cut_once(costs: list[int], cuts: int, processes: int) -> None:
    targets = targets_of(costs, cuts)
    parts = divide(targets, processes)
    assert all(part.cuts for part in parts)
    assert sorted(names_of(tuple(parts))) == sorted(names_of(targets))
    each = [part.macs * len(part.cuts) for part in parts]
    assert each == sorted(each, reverse=True)
    most = sum(costs) * cuts / (2 * processes)
    assert all(part.macs * (len(part.cuts) - 1) <= most for part in parts)


def test_a_process_has_at_least_one_thread() -> None:
    assert threads_each(10**6) == 1


@pytest.fixture
def quick_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which each worker that starts leaves a file with its number of threads.

    They import a module that does this and is called paddle, so they are ready in no time.
    """
    (tmp_path / "paddle.py").write_text(
        "import os, pathlib\n"
        f"file = pathlib.Path({str(tmp_path)!r}, str(os.getpid()))\n"
        "file.write_text(os.environ['OMP_NUM_THREADS'])\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def ready(folder: Path, count: int) -> list[Path]:
    """The files of this many workers in a folder, once all are there."""
    for _ in range(600):
        files = [path for path in folder.iterdir() if path.name.isdecimal() and path.read_text()]
        if len(files) == count:
            return files
        time.sleep(0.1)
    raise AssertionError(f"{count} workers were awaited")


@pytest.mark.parametrize("before", [None, "7"])
def test_threads_are_set_for_the_workers_alone(
    quick_start: Path, monkeypatch: pytest.MonkeyPatch, before: str | None
) -> None:
    """When they import paddle, which reads the variable then."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if before:
        monkeypatch.setenv("OMP_NUM_THREADS", before)
    with Workers(2, 3):
        assert [path.read_text() for path in ready(quick_start, 2)] == ["3", "3"]
    assert os.environ.get("OMP_NUM_THREADS") == before


OWNER = """
import signal, sys, time
from slim_det.planning.sensitivity.workers import Workers
if __name__ == "__main__":
    # A shell lets its background jobs ignore Ctrl-C, and so whatever they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.path.insert(0, sys.argv[1])
    with Workers(2, 1):
        time.sleep(600)
"""


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGINT])
def test_no_worker_outlives_its_owner(quick_start: Path, signum: signal.Signals) -> None:
    """Ctrl-C reaches them all, and only the one that the user started says so."""
    script = quick_start / "owner.py"
    script.write_text(OWNER)
    owner = subprocess.Popen(
        [sys.executable, script, quick_start],
        env=process_environment(),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    workers = ready(quick_start, 2)
    (os.killpg if signum == signal.SIGINT else os.kill)(owner.pid, signum)
    assert owner.communicate(timeout=60)[1].count("Traceback") == (signum == signal.SIGINT)
    for _ in range(600):
        if not any(Path("/proc", path.name).exists() for path in workers):
            return
        time.sleep(0.1)
    raise AssertionError("a worker is still there")


@pytest.fixture(scope="module")
def work(
    tmp_path_factory: pytest.TempPathFactory, detector: Detector, traced_detector: Any
) -> tuple[DetectorProgram, list[Any], tuple[Target, ...]]:
    """A saved detector, what enters its partial programs for six images, and nine cuts."""
    folder = tmp_path_factory.mktemp("workers")
    targets = make_targets(*traced_detector, TIPS, [0.25, 0.5, 0.75], Pruner(pruned_ratios=0.5))
    with restored_config():
        save_program(traced_detector[0], (96, 96), folder)
        program = DetectorProgram(folder, 1)
        images = Images(load_config(str(detector.config)))
        found = measure_baseline(
            images, program, Job(tuple(targets), 6, 6), lambda key, value: None
        )
    assert found is not None
    return program, found.cached_activations, tuple(targets)


Found = dict[str, list[Detections]]


def left_over(program: DetectorProgram) -> list[str]:
    """What a run has left beside the program."""
    return [path.name for path in program.folder.iterdir() if path.is_dir()]


def test_two_processes_find_what_one_finds(work: Any) -> None:
    """The boxes of every image, bit by bit; the processes serve a second run as well."""
    program, cached_activations, targets = work
    here: Found = {
        c.name: boxes for t in targets for c, boxes in program.run_cuts(t, cached_activations)
    }
    with Workers(2, 1) as workers:
        for part in (targets, targets[1:]):
            there: Found = dict(workers.run(program, cached_activations, part))
            assert sorted(there) == sorted(names_of(part))
            for name, boxes in there.items():
                pairs = zip(map(rows_of, boxes), map(rows_of, here[name]))
                assert all(np.array_equal(a, b) for a, b in pairs)
                assert len(boxes) == 6
    assert left_over(program) == []
    assert not any(process.is_alive() for process in workers._processes.values())


def test_killed_worker_is_an_error_that_keeps_what_is_finished(work: Any) -> None:
    """SIGKILL after the first cut: what was reported is complete, and no process is left."""
    program, cached_activations, targets = work
    found: Found = {}
    died = "a worker ended with exit code -9"
    with Workers(1, 1) as workers, pytest.raises(SensitivityError, match=died) as caught:
        for name, boxes in workers.run(program, cached_activations, targets):
            found[name] = boxes
            next(iter(workers._processes.values())).kill()
    assert "\n" not in str(caught.value)
    assert found and all(len(boxes) == 6 for boxes in found.values())
    assert left_over(program) == []


def test_error_in_a_worker_is_told(work: Any) -> None:
    """In one line, with the message of the worker."""
    program, cached_activations, targets = work
    unknown = replace(targets[0], cuts=(Cut("x", 0.5, {"no.mask": np.ones(3, np.float32)}),))
    failed = "^a worker failed: .*"
    with Workers(1, 1) as workers, pytest.raises(SensitivityError, match=failed) as caught:
        list(workers.run(program, cached_activations, [unknown]))
    assert "\n" not in str(caught.value)
