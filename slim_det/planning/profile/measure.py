"""Measures convolutions and a complete model in turns, so that a drift affects all of them."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from tqdm import tqdm

from slim_det.planning.profile.programs import (
    Runner,
    conv_runner,
    copies,
    empty_runner,
    surroundings,
)
from slim_det.planning.profile.shapes import ConvShape
from slim_det.planning.profile.table import Entry

RUNS_A_VISIT = 2
PROGRAMS_AT_ONCE = 120
WEIGHTS_AT_ONCE = 60_000_000


@dataclass(frozen=True)
class Measured:
    """The result of `measure`.

    Attributes:
        entries: One per shape, in the given order.
        model_ms: Median latency of the complete model; NaN without one.
    """

    entries: tuple[Entry, ...]
    model_ms: float


def measure(
    shapes: Sequence[ConvShape], model: Runner | None, threads: int = 1, repeats: int = 20
) -> Measured:
    """Measure convolutions on Paddle Inference, batch 1.

    A program with several copies of a convolution is compared with the same program without them;
    the difference divided by the number of copies is the latency of one. The programs take turns
    (see `in_turns`). Between bundles of programs the complete model is run alone, as it will be
    when deployed.

    Args:
        shapes: Each once.
        model: Runs the complete model once; None for no model.
        threads: CPU threads of the convolutions.
        repeats: Timed runs of each program; see `counted`.
    """
    entries: dict[ConvShape, Entry] = {}
    model_ms: list[float] = []
    rounds = counted(repeats) // RUNS_A_VISIT
    visits = len(shapes) * (1 + rounds)
    with tqdm(total=visits, desc="convolutions", unit="visit", disable=None) as bar:
        for chunk in _chunks(shapes):
            empties = {surroundings(s): empty_runner(s, threads) for s in chunk}
            programs = {s: conv_runner(s, threads) for s in chunk}
            runners: dict[Hashable, Runner] = dict([*empties.items(), *programs.items()])
            times = in_turns(runners, rounds, partial(bar.update, len(chunk)))
            entries.update({s: _entry(s, times[s], times[surroundings(s)]) for s in chunk})
            if model is not None:
                model_ms.extend(in_turns({"model": model}, rounds)["model"])
            del empties, programs, runners
            gc.collect()
    median = float(np.median(model_ms)) if model_ms else math.nan
    return Measured(tuple(entries[s] for s in shapes), median)


def counted(repeats: int) -> int:
    """Number of timed runs: ``repeats``, rounded up to full visits."""
    return math.ceil(repeats / RUNS_A_VISIT) * RUNS_A_VISIT


def in_turns(
    runners: Mapping[Hashable, Runner], rounds: int, tick: Callable[[], object] | None = None
) -> dict[Hashable, np.ndarray]:
    """Time several programs in rounds, after a warm-up round.

    Args:
        runners: Name -> runs the program once.
        rounds: Visits of each program; a visit is one warm-up run and two timed runs.
        tick: Called after each round.

    Returns:
        Name -> milliseconds, float64 [2 x rounds].
    """
    times: dict[Hashable, list[float]] = {name: [] for name in runners}
    for number in range(1 + rounds):
        for name, run in runners.items():
            run()
            for _ in range(RUNS_A_VISIT if number else 0):
                start = time.perf_counter()
                run()
                times[name].append((time.perf_counter() - start) * 1e3)
        if tick is not None:
            tick()
    return {name: np.array(values) for name, values in times.items()}


def _entry(shape: ConvShape, full: np.ndarray, empty: np.ndarray) -> Entry:
    """Median and percentiles of one convolution; what noise makes negative counts as 0."""
    each = np.maximum(0.0, full - np.median(empty)) / copies(shape)
    p10, median, p90 = (float(value) for value in np.percentile(each, [10, 50, 90]))
    return Entry(shape, median, p10, p90)


def _chunks(shapes: Sequence[ConvShape]) -> Iterator[list[ConvShape]]:
    """Shapes whose programs fit into memory together; neighbours share an empty program.

    The order is random with a fixed seed, so a slow minute of the machine affects no kind of layer
    more than another.
    """
    places = list(dict.fromkeys(map(surroundings, shapes)))
    rank = dict(zip(places, np.random.default_rng(0).permutation(len(places)).tolist()))
    chunk: list[ConvShape] = []
    weights = 0
    for shape in sorted(shapes, key=lambda s: rank[surroundings(s)]):
        chunk.append(shape)
        area = shape.in_channels // shape.groups * shape.kernel**2
        weights += copies(shape) * shape.out_channels * area
        if len(chunk) >= PROGRAMS_AT_ONCE or weights > WEIGHTS_AT_ONCE:
            yield chunk
            chunk, weights = [], 0
    if chunk:
        yield chunk
