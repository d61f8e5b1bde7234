"""Stems: the first convolution of a tail as a running sum over the channels that cuts keep."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from slim_det.prune.pruner import Pruner
from slim_det.sensitivity.candidates import Cut, Target, make_targets
from slim_det.sensitivity.masks import mask_name
from slim_det.sensitivity.stems import RunningStem, Stem
from slim_det.sensitivity.tails import IMAGE_INPUTS, DetectorProgram, save_program
from tests.support import restored_config

WIDE = "neck.yolo_block.1.conv_module.conv0"
"""Read by a 3x3 convolution."""
NARROW = "neck.yolo_block.1.conv_module.conv1"
"""Read by a 1x1 convolution."""


class Recorder:
    """Stands for a program: a convolution whose output is the sum of its input channels."""

    def __init__(self) -> None:
        self.parts: list[list[int]] = []

    def part(self, stem: Stem, channels: np.ndarray) -> Any:
        self.parts.append(channels.tolist())
        return lambda inputs: {stem.output: inputs[stem.source].sum(axis=1, keepdims=True)}


def keeping(*channels: int) -> Cut:
    mask = np.zeros((1, 4, 1, 1), np.float32)
    mask[0, list(channels)] = 1.0
    return Cut("g", 0.5, {mask_name("w"): mask})


def running() -> tuple[Recorder, RunningStem, list[dict[str, np.ndarray]]]:
    """Two batches of two images; channel c holds 10 ** c, one more in the second batch."""
    recorder = Recorder()
    powers = 10.0 ** np.arange(4, dtype=np.float32).reshape(1, 4, 1, 1)
    frontiers = [{"x": np.repeat(powers, 2, axis=0) * (i + 1)} for i in range(2)]
    return recorder, RunningStem(recorder, Stem("w", 0, "x", "y")), frontiers  # type: ignore


def test_each_channel_is_added_once() -> None:
    recorder, stem, frontiers = running()
    for kept, total in (((3,), 1000), ((1, 3), 1010), ((0, 1, 3), 1011)):
        first, second = stem.advance(keeping(*kept), frontiers)
        assert first.ravel().tolist() == [total, total]
        assert second.ravel().tolist() == [2 * total, 2 * total]
    assert recorder.parts == [[3], [1], [0]]


def test_a_cut_that_drops_a_channel_begins_anew() -> None:
    recorder, stem, frontiers = running()
    stem.advance(keeping(0, 1), frontiers)
    assert stem.advance(keeping(1, 2), frontiers)[0].ravel().tolist() == [110, 110]
    assert recorder.parts == [[0, 1], [1, 2]]


def test_the_same_cut_runs_nothing() -> None:
    recorder, stem, frontiers = running()
    before = stem.advance(keeping(2), frontiers)[1].copy()
    assert np.array_equal(stem.advance(keeping(2), frontiers)[1], before)
    assert recorder.parts == [[2]]


@pytest.fixture(scope="module")
def cut_program(
    tmp_path_factory: pytest.TempPathFactory, traced_detector: Any
) -> tuple[DetectorProgram, dict[str, Target], list[dict[str, np.ndarray]]]:
    """A saved detector, two of its groups, and what enters their tails for three batches."""
    folder = tmp_path_factory.mktemp("stems")
    with restored_config():
        save_program(traced_detector[0], (96, 96), folder)
    program = DetectorProgram(folder, 1)
    ratios = [0.2, 0.5, 0.8]
    targets = make_targets(*traced_detector, [WIDE, NARROW], ratios, Pruner(pruned_ratios=0.5))
    whole = program.whole(program.frontier(targets))
    rng = np.random.default_rng(0)
    frontiers = []
    for count in (2, 2, 1):
        image = rng.normal(size=(count, 3, 96, 96)).astype(np.float32)
        sizes = np.full((count, 2), 96, np.float32), np.ones((count, 2), np.float32)
        batch = dict(zip(IMAGE_INPUTS, (image, *sizes)))
        frontiers.append({**batch, **whole(batch)})
    return program, {target.name: target for target in targets}, frontiers


def test_only_wide_convolutions_of_the_frontier_are_stems(cut_program: Any) -> None:
    program, targets, _ = cut_program
    tail = program.tail(targets[WIDE].readers)
    rest, (stem,) = program.without_stems(tail)
    assert stem.reader == tail.readers[0] and stem.source in tail.frontier
    assert stem.output in rest.frontier and stem.source not in rest.frontier
    assert rest.readers == () and set(rest.operators) == set(tail.operators) - {stem.place}
    narrow = program.tail(targets[NARROW].readers)
    assert program.without_stems(narrow) == (narrow, ())


@pytest.mark.parametrize("name", [WIDE, NARROW])
def test_boxes_are_those_of_the_masked_tail(cut_program: Any, name: str) -> None:
    """Every cut once, from the largest on, for the images of all batches in order."""
    program, targets, frontiers = cut_program
    target = targets[name]
    masked = program.runner(program.tail(target.readers), "masked")
    found = [(cut.ratio, boxes) for cut, boxes in program.run_cuts(target, frontiers)]
    assert [ratio for ratio, _ in found] == [0.8, 0.5, 0.2]
    masks = {cut.ratio: cut.masks for cut in target.cuts}
    for ratio, boxes in found:
        want = [b for f in frontiers for b in program.boxes(masked({**f, **masks[ratio]}))]
        assert len(boxes) == 5 and sum(map(len, want)) > 0
        for left, right in zip(boxes, want):
            np.testing.assert_allclose(left, right, rtol=1e-3, atol=1e-3)
