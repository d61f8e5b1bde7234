"""Measuring: what is subtracted and divided, by hand and with programs that only count."""

from __future__ import annotations

import time

import numpy as np
import pytest

from slim_det.planning.profile.measure import in_turns, measure
from slim_det.planning.profile.programs import Runner, copies
from slim_det.planning.profile.shapes import ConvShape

SMALL = ConvShape(8, 8, 8, 8, 3, 1, 1, act="relu")


def test_nothing_to_measure() -> None:
    measured = measure([], None)
    assert measured.entries == ()
    assert np.isnan(measured.model_ms)


def test_programs_are_run_in_turns() -> None:
    runs: list[str] = []
    ticks: list[int] = []
    runners = {name: (lambda name=name: runs.append(name)) for name in "ab"}

    times = in_turns(runners, 2, lambda: ticks.append(len(runs)))

    # one run that warms up, then two visits of one run uncounted and two counted
    assert "".join(runs) == "ab" + "aaabbb" * 2
    assert ticks == [2, 8, 14]
    assert {name: len(values) for name, values in times.items()} == {"a": 4, "b": 4}


def test_what_is_measured_is_the_difference_by_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that programs move: the empty one takes 5 ms, each copy of a convolution 2 ms."""
    clock = [0.0]

    def program(milliseconds: float) -> Runner:
        return lambda: clock.__setitem__(0, clock[0] + milliseconds / 1e3)

    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    module = "slim_det.planning.profile.measure"
    monkeypatch.setattr(f"{module}.empty_runner", lambda shape, threads: program(5.0))
    monkeypatch.setattr(
        f"{module}.conv_runner", lambda shape, threads: program(5.0 + 2.0 * copies(shape))
    )
    shapes = [SMALL, ConvShape(512, 512, 64, 64, 3, 1, 1), ConvShape(3, 8, 8, 8, 3, 1, 1)]

    measured = measure(shapes, program(40.0), repeats=3)

    assert [entry.shape for entry in measured.entries] == shapes
    for entry in measured.entries:
        times = (entry.p10_ms, entry.latency_ms, entry.p90_ms)
        assert times == pytest.approx((2.0, 2.0, 2.0))
    assert measured.model_ms == pytest.approx(40.0)


def test_noise_never_makes_a_negative_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    module = "slim_det.planning.profile.measure"
    monkeypatch.setattr(f"{module}.empty_runner", lambda shape, threads: lambda: time.sleep(0.002))
    monkeypatch.setattr(f"{module}.conv_runner", lambda shape, threads: lambda: None)
    (entry,) = measure([SMALL], None, repeats=2).entries
    assert (entry.p10_ms, entry.latency_ms, entry.p90_ms) == (0.0, 0.0, 0.0)


def test_two_real_convolutions() -> None:
    shapes = [SMALL, ConvShape(3, 8, 32, 32, 3, 2, 1)]
    entries = measure(shapes, None, repeats=2).entries
    assert [entry.shape for entry in entries] == shapes
    assert all(0.0 <= e.p10_ms <= e.latency_ms <= e.p90_ms < 1e3 for e in entries)
