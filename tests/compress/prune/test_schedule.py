"""The schedule of a pruning: what is valid, how ratios are divided, and when steps are due."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slim_det.compress.prune.ratios import units_removed
from slim_det.compress.prune.schedule import Schedule, Steps, divide, read_schedule
from slim_det.core.errors import ConfigError, PlanError
from tests.compress.prune.small_net import SmallNet, traced


def no_macs(left: Mapping[str, int]) -> float:
    raise AssertionError("even steps need no MACs")


def even(steps: int, units: dict[str, int], ratios: dict[str, float], align: int = 1) -> Steps:
    return divide(Schedule(2, steps=steps), units, ratios, align, no_macs)


def test_without_a_schedule() -> None:
    assert read_schedule(None) is None


def test_both_kinds() -> None:
    even = read_schedule({"steps": 3, "epochs": 12})
    by_macs = read_schedule({"macs_per_step": 0.07, "epochs": 1})
    assert even == Schedule(12, steps=3) and by_macs == Schedule(1, macs_per_step=0.07)
    assert even.asked() == {"epochs": 12, "steps": 3}
    again = read_schedule({"steps": 3, "epochs": 12, "restart_lr": True})
    assert again.asked() == {"epochs": 12, "steps": 3, "restart_lr": True}
    assert read_schedule({"steps": 3, "epochs": 12, "restart_lr": False}) == even
    assert by_macs.asked() == {"epochs": 1, "macs_per_step": 0.07}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, "Pruner.schedule: expected a mapping of keys, found 3"),
        ({"steps": 3, "epoch": 1}, "unknown key 'epoch'; did you mean 'epochs'?"),
        ({}, "expected epochs, and either steps or macs_per_step, found nothing"),
        ({"steps": 3}, "expected epochs, and either steps or macs_per_step, found steps"),
        ({"epochs": 3}, "expected epochs, and either steps or macs_per_step, found epochs"),
        ({"epochs": 3, "steps": 2, "macs_per_step": 0.1}, "found epochs, steps, macs_per_step"),
        ({"epochs": 0, "steps": 2}, "Pruner.schedule.epochs: 0 is not valid"),
        ({"epochs": 1, "steps": 1}, "Pruner.schedule.steps: 1 is not valid; expected a whole"),
        ({"epochs": 1, "steps": 2, "restart_lr": 1}, "restart_lr: 1 is not valid; expected true"),
        ({"epochs": 1, "steps": 2.0}, "Pruner.schedule.steps: 2.0 is not valid"),
        ({"epochs": 1, "macs_per_step": 7}, "macs_per_step: 7 is not valid; expected a number"),
        ({"epochs": 1, "macs_per_step": True}, "macs_per_step: True is not valid"),
        ({"epochs": 1, "macs_per_step": "0.07"}, "macs_per_step: '0.07' is not valid"),
        ({"epochs": 1, "macs_per_step": float("nan")}, "macs_per_step: nan is not valid"),
    ],
)
def test_mistakes(value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_schedule(value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_three_steps_by_hand() -> None:
    """Of 1000 channels, 20 % of what is left go three times."""
    steps = even(3, {"a": 1000, "b": 8, "other": 4}, {"a": 0.488, "b": 0.875})
    assert steps.kept == {"a": [800, 640, 512], "b": [4, 2, 1]}
    assert (steps.count, steps.done, steps.total_epochs) == (3, 0, 6)
    assert steps.asked == {"epochs": 2, "steps": 3}


@given(
    units=st.dictionaries(st.sampled_from("abc"), st.integers(40, 900), min_size=1),
    ratio=st.floats(0.3, 0.95),
    count=st.integers(2, 6),
    align=st.sampled_from([1, 4]),
)
def test_the_end_is_that_of_a_single_cut(
    units: dict[str, int], ratio: float, count: int, align: int
) -> None:
    ratios = dict.fromkeys(units, ratio)
    try:
        steps = even(count, units, ratios, align)
    except PlanError:
        assert max(units.values()) * ratio < 4 * count * align
        return
    for name, after in steps.kept.items():
        assert after[-1] == units[name] - units_removed(units[name], ratio, align)
        assert [units[name], *after] == sorted([units[name], *after], reverse=True)


def test_a_step_that_removes_nothing_is_an_error() -> None:
    with pytest.raises(PlanError, match="step 1 of 3 would remove no channel; expected fewer"):
        even(3, {"a": 2}, {"a": 0.5})
    with pytest.raises(PlanError, match="step 3 of 3 would remove no channel"):
        even(3, {"a": 4}, {"a": 0.6})
    assert even(2, {"a": 2, "b": 100}, {"a": 0.5, "b": 0.5}).kept == {"a": [1, 1], "b": [71, 50]}


def test_steps_by_macs() -> None:
    """MACs are the product of two widths: 10000, of which 7 % go at a time until 70 x 70 remain."""
    steps = divide(
        Schedule(1, macs_per_step=0.07),
        {"a": 100, "b": 100},
        {"a": 0.3, "b": 0.3},
        1,
        lambda left: left["a"] * left["b"],
    )
    macs = [a * b for a, b in zip(steps.kept["a"], steps.kept["b"])]
    # The largest squares that are at most 9300, 8600, 7900, ..., and the end.
    assert macs == [width**2 for width in (96, 92, 88, 84, 80, 76, 71, 70)]


def test_when_steps_are_due() -> None:
    steps = even(3, {"a": 100}, {"a": 0.5})
    assert [steps.due(epoch) for epoch in range(8)] == [1, 1, 2, 2, 3, 3, 3, 3]
    assert not steps.is_complete and replace(steps, done=3).is_complete


def test_shares_of_the_next_step() -> None:
    """Of the units that the groups have now; a group that keeps them all is not named."""
    _, groups = traced(SmallNet())
    steps = Steps({"epochs": 1}, {"stem": [4, 3, 1], "inner": [3, 3, 2]})
    assert steps.next_ratios(groups) == {"inner": 0.5}
    assert replace(steps, done=1).next_ratios(groups) == {"stem": 0.25, "inner": 0.5}
    assert replace(steps, done=2).next_ratios(groups) == {
        "stem": 0.75,
        "inner": pytest.approx(2 / 3),
    }


@given(left=st.integers(2, 3000), data=st.data(), align=st.sampled_from([1, 8]))
def test_a_share_of_what_is_left_removes_its_units(
    left: int, data: st.DataObject, align: int
) -> None:
    """Exactly, though it is written as a fraction; with ``align`` for the multiples that occur."""
    kept = data.draw(st.integers(1, left - 1))
    if align > 1:
        kept = max(align, kept // align * align)
    if kept < left:
        assert units_removed(left, (left - kept) / left, align) == left - kept


def test_steps_are_read_from_a_plan() -> None:
    steps = even(3, {"a": 100}, {"a": 0.5})
    assert Steps(**asdict(steps)) == steps


@pytest.mark.parametrize(
    "changes",
    [
        {"done": 4},
        {"done": -1},
        {"kept": {}},
        {"kept": {"a": [1, 2], "b": [1]}},
        {"asked": {"epochs": 0}},
    ],
)
def test_steps_that_contradict_themselves(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="schedule is not valid"):
        replace(even(3, {"a": 100}, {"a": 0.5}), **changes)
