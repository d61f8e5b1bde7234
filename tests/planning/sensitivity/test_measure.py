"""Units of work: their keys and values, the chunks, and that none is done twice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slim_det.compress.prune.pruner import Pruner
from slim_det.evaluate.image_matches import ImageMatches
from slim_det.planning.sensitivity import measure
from slim_det.planning.sensitivity.candidates import make_targets
from slim_det.planning.sensitivity.cuts import Target
from slim_det.planning.sensitivity.measure import (
    BASELINE,
    Images,
    Job,
    measure_baseline,
    measure_cuts,
    pack_matches,
    unfinished,
    unit_key,
    unit_keys,
    unpack_matches,
)
from slim_det.planning.sensitivity.partial_inference import DetectorProgram, save_program
from slim_det.training.config import load_config
from tests.support import restored_config
from tests.trained import Detector

TIPS = ["neck.yolo_block.0.tip", "neck.yolo_block.2.tip"]


def test_no_images_make_no_units() -> None:
    assert unit_keys("tip@0.5", 0, 4) == []
    assert pack_matches([]) == {"images": []} and unpack_matches({"images": []}) == []


def test_keys_say_which_images() -> None:
    assert unit_key("tip@0.5", 4, 2) == "tip@0.5 4:6"
    assert unit_keys("tip@0.5", 6, 4) == ["tip@0.5 0:4", "tip@0.5 4:6"]
    assert unit_keys("tip@0.5", 6, 6) == ["tip@0.5 0:6"]
    assert unit_keys("tip@0.5", 8, 4) == ["tip@0.5 0:4", "tip@0.5 4:8"]


@given(st.integers(1, 300), st.integers(1, 50))
def test_units_cover_every_image_once(num_images: int, chunk: int) -> None:
    spans = [key.split()[1].split(":") for key in unit_keys("x", num_images, chunk)]
    covered = [i for start, end in spans for i in range(int(start), int(end))]
    assert covered == list(range(num_images))


def test_packed_matches_come_back() -> None:
    matches = ImageMatches(
        classes=np.int16([2, 0]),
        scores=np.float32([0.75, 0.1]),
        hits=np.uint16([1023, 0]),
        ignored=np.uint16([0, 512]),
    )
    (found,) = unpack_matches(pack_matches([matches]))
    for name in ("classes", "scores", "hits", "ignored"):
        assert np.array_equal(getattr(found, name), getattr(matches, name))


@pytest.mark.parametrize("text", ["", "AAAA", "no base64 at all!"])
def test_damaged_matches_are_refused(text: str) -> None:
    with pytest.raises(ValueError):
        unpack_matches({"images": [text]})


@pytest.fixture(scope="module")
def cfg(detector: Detector) -> Iterator[Any]:
    with restored_config():
        yield load_config(detector.config)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory, cfg: Any, traced_detector: Any) -> Any:
    folder = tmp_path_factory.mktemp("program")
    save_program(traced_detector[0], (96, 96), folder)
    return DetectorProgram(folder, 1)


@pytest.fixture(scope="module")
def targets(traced_detector: Any) -> tuple[Target, ...]:
    """Two groups at 0.001, which removes nothing, and at 0.5."""
    pruner = Pruner(pruned_ratios=0.5)
    return tuple(make_targets(*traced_detector, TIPS, [0.001, 0.5], pruner))


class Log:
    """The units that were reported, and how often the complete detector was loaded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.units: dict[str, Any] = {}
        self.complete_runs = 0
        original = DetectorProgram.complete_engine

        def complete_engine(program: DetectorProgram, *arguments: Any) -> Any:
            self.complete_runs += 1
            return original(program, *arguments)

        monkeypatch.setattr(DetectorProgram, "complete_engine", complete_engine)

    def __call__(self, key: str, value: dict[str, Any]) -> None:
        assert key not in self.units
        self.units[key] = value


def job_of(targets: tuple[Target, ...], chunk: int, recorded: frozenset[str] = frozenset()) -> Job:
    return Job(targets, num_images=6, chunk_images=chunk, recorded=recorded)


@pytest.mark.parametrize(
    ("num_images", "chunk", "spans"),
    [(None, 0, [(0, 6)]), (None, 4, [(0, 4), (4, 2)]), (5, 4, [(0, 4), (4, 1)]), (3, 0, [(0, 3)]),
     (99, 0, [(0, 6)])],
)  # fmt: skip
def test_chunks_hold_the_first_images_in_order(
    cfg: Any, num_images: int | None, chunk: int, spans: list[tuple[int, int]]
) -> None:
    images = Images(cfg, num_images, chunk)
    for _ in range(2):  # a second pass reads the same
        assert [(c.start, c.num_images) for c in images] == spans
    assert images.scorer.num_images == sum(count for _, count in spans)


def test_baseline_is_measured_once(cfg: Any, program: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A unit a chunk; what is recorded is left out, and the scorer knows all objects anyway."""
    log = Log(monkeypatch)
    measure_baseline(Images(cfg, None, 4), program, job_of((), 4), log)
    assert list(log.units) == [f"{BASELINE} 0:4", f"{BASELINE} 4:6"]
    again = Log(monkeypatch)
    images = Images(cfg, None, 4)
    job = job_of((), 4, frozenset([f"{BASELINE} 0:4"]))
    assert measure_baseline(images, program, job, again) is None
    assert again.units == {f"{BASELINE} 4:6": log.units[f"{BASELINE} 4:6"]}
    assert images.scorer.num_images == 6


@pytest.mark.parametrize("chunk", [6, 4])
def test_cut_of_nothing_is_the_baseline(
    cfg: Any, program: Any, targets: Any, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    """Four cuts, two of which remove nothing; what the baseline ran is used again if it fits."""
    log = Log(monkeypatch)
    images, job = Images(cfg, None, chunk), job_of(targets, chunk)
    prepared = measure_baseline(images, program, job, log)
    assert (prepared is not None) == (chunk == 6)
    measure_cuts(images, program, job, log, prepared)
    assert log.complete_runs == (1 if chunk == 6 else 2)
    cuts = [f"{tip}@{ratio}" for tip in TIPS for ratio in (0.001, 0.5)]
    keys = [key for name in (BASELINE, *cuts) for key in unit_keys(name, 6, chunk)]
    assert sorted(log.units) == sorted(keys)
    for span in {key.split()[1] for key in keys}:
        for tip in TIPS:
            assert log.units[f"{tip}@0.001 {span}"] == log.units[f"{BASELINE} {span}"]
            assert log.units[f"{tip}@0.5 {span}"] != log.units[f"{BASELINE} {span}"]


def _watch_runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """First image of every chunk that the complete detector is run on from now on."""
    starts = []
    original = measure._prepare

    def prepare(program: Any, engine: Any, chunk: Any) -> Any:
        starts.append(chunk.start)
        return original(program, engine, chunk)

    monkeypatch.setattr(measure, "_prepare", prepare)
    return starts


def test_only_what_is_missing_is_measured(
    cfg: Any, program: Any, targets: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The images of the one chunk that has something left are run, and no other."""
    every = Log(monkeypatch)
    measure_cuts(Images(cfg, None, 4), program, job_of(targets, 4), every)
    assert len(every.units) == 8
    left = f"{TIPS[1]}@0.5 4:6"
    for recorded, want, prepared in (
        (frozenset(every.units) - {left}, {left: every.units[left]}, [4]),
        (frozenset(every.units), {}, []),
    ):
        starts = _watch_runs(monkeypatch)
        log = Log(monkeypatch)
        measure_cuts(Images(cfg, None, 4), program, job_of(targets, 4, recorded), log)
        assert log.units == want and starts == prepared
        monkeypatch.undo()


def test_unfinished_leaves_out_what_is_recorded_on_all_images(targets: Any) -> None:
    keys = [key for t in targets for c in t.cuts for key in unit_keys(c.name, 6, 4)]
    assert unfinished(job_of(targets, 4)) == job_of(targets, 4)
    assert unfinished(job_of(targets, 4, frozenset(keys))).targets == ()
    half = unfinished(job_of(targets, 4, frozenset(keys) - {f"{TIPS[1]}@0.5 4:6"}))
    assert [(t.name, [c.ratio for c in t.cuts]) for t in half.targets] == [(TIPS[1], [0.5])]


def test_no_image_is_left_out_where_the_reader_has_several_workers(
    detector: Detector, tmp_path: Path
) -> None:
    with restored_config():
        cfg = load_config(detector.config, ["worker_num=1"])
        alone = Images(load_config(detector.config))
        images = Images(cfg)
        for left, right in zip(images, alone):
            for a, b in zip(left.batches, right.batches):
                assert all(np.array_equal(a[name], b[name]) for name in a)
