"""The protocol of strategies, with strategies that do nothing or little."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import paddle
import pytest
from ppdet.core.workspace import global_config, register

from slim_det.compress.hook import Hook
from slim_det.compress.prune.plan import Plan, attach_step
from slim_det.compress.quantize.record import QuantRecord
from slim_det.compress.quantize.settings import QuantSettings
from slim_det.compress.steps import Step, detach_step, step_of, steps_of
from slim_det.compress.strategy import (
    Context,
    Strategy,
    hooks_of,
    in_order,
    postpone,
    postponed,
    read_steps,
    registered_strategies,
    restore_step,
    step_kinds,
    step_path,
)
from slim_det.compress.tensors import tensor_shapes
from slim_det.core.errors import ConfigError, WeightsError


@dataclass
class Noted(Step):
    """Remembers a word."""

    suffix: ClassVar[str] = ".noted.json"
    state: ClassVar[str] = "noted"
    word: str


class Watch(Hook):
    """Watches."""


class Note(Strategy):
    """Attaches a word; has to come before any quantization."""

    step = Noted
    hooks = (Watch,)
    comes_before = ("QAT", "PTQ")

    @classmethod
    def restore(cls, model: Any, step: Noted) -> None:
        model.word = step.word


class Free(Strategy):
    """Leaves nothing, and may stand anywhere."""


class Late(Strategy):
    """Contradicts `Early`: both have to come first."""

    comes_before = ("Early",)


class Early(Strategy):
    """Contradicts `Late`."""

    comes_before = ("Late",)


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    kinds = (Note, Free, Late, Early)
    # `Late` and `Early` exist only where a test asks for them.
    for kind in kinds[:2]:
        register(kind)
    yield
    for kind in kinds:
        global_config.pop(kind.__name__, None)


def net() -> paddle.nn.Layer:
    return paddle.nn.Linear(2, 3)


def plan(model: paddle.nn.Layer) -> Plan:
    return Plan("Linear", tensor_shapes(model), (32, 32), {}, {}, {}, {})


def record() -> QuantRecord:
    return QuantRecord(QuantSettings(), [], {})


def write(stem: Path, *steps: Step) -> Path:
    """The files of a model that was changed by these steps, in this order."""
    model = net()
    for step in steps:
        attach_step(model, step)
        step.write(step_path(stem, type(step)))
    return stem


def test_registered_strategies_are_ours_and_the_users() -> None:
    names = list(registered_strategies())
    assert names == ["Pruner", "Slim", "Distill", "QAT", "PTQ", "Note", "Free"]
    suffixes = [kind.suffix for kind in step_kinds()]
    assert suffixes == [".plan.json", ".companions.pdparams", ".noted.json", ".quant.json"]


@pytest.mark.parametrize(
    ("given", "ordered"),
    [
        ([], []),
        (["Free", "Pruner"], ["Free", "Pruner"]),
        (["Pruner", "Free"], ["Pruner", "Free"]),
        (["QAT", "Note"], ["Note", "QAT"]),
        (["QAT", "Free", "Pruner", "Note"], ["Free", "Pruner", "Note", "QAT"]),
    ],
)
def test_order_is_changed_only_where_it_has_to_be(given: list[str], ordered: list[str]) -> None:
    assert in_order(given) == ordered


def test_strategies_that_contradict_each_other() -> None:
    register(Late)
    register(Early)
    with pytest.raises(ConfigError, match="Late, Early: each has to come before another"):
        in_order(["Free", "Late", "Early"])


def test_a_model_has_one_step_of_a_kind() -> None:
    """In the order in which they were attached; a second one takes the place of the first."""
    model = net()
    assert steps_of(model) == [] and step_of(model, Noted) is None
    for step in (plan(model), Noted("a"), record(), Noted("b")):
        attach_step(model, step)
    assert [type(step) for step in steps_of(model)] == [Plan, Noted, QuantRecord]
    assert step_of(model, Noted) == Noted("b")
    assert [step.place for step in steps_of(model)] == [0, 1, 2]
    detach_step(model, step_of(model, Noted))
    assert [type(step) for step in steps_of(model)] == [Plan, QuantRecord]
    assert list(model.state_dict()) == ["weight", "bias"]


@pytest.mark.parametrize("first", [True, False])
def test_steps_are_read_in_the_order_in_which_they_were_done(tmp_path: Path, first: bool) -> None:
    """Plans and records have a fixed place; a user's step says its own."""
    steps = [Noted("a"), plan(net())] if first else [plan(net()), Noted("a")]
    stem = write(tmp_path / "1.5", *steps, record())
    kinds = [Noted, Plan] if first else [Plan, Noted]
    assert [type(step) for step in read_steps(stem)] == [*kinds, QuantRecord]
    assert Noted("a") in read_steps(stem) and read_steps(tmp_path / "1") == []


def test_step_is_restored_by_its_strategy() -> None:
    model = net()
    restore_step(model, Noted("a"))
    assert model.word == "a" and step_of(model, Noted) == Noted("a")


def test_steps_agree_where_they_say_the_same() -> None:
    assert Noted("a").differs(Noted("a")) == ""
    assert Noted("a").differs(Noted("b")) == "says something else"


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"schema": "slim_det.step/2"}', '{"schema": "slim_det.step/1"}']
    + ['{"schema": "slim_det.step/1", "place": 0, "fields": {"words": 1}}'],
)
def test_damaged_step(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.noted.json"
    path.write_text(text)
    with pytest.raises(WeightsError) as caught:
        read_steps(tmp_path / "x")
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_step_of_an_unknown_strategy_is_refused(tmp_path: Path) -> None:
    """Other files that happen to lie there are not read as steps."""
    stem = write(tmp_path / "x", Noted("a"))
    (tmp_path / "x.other.json").write_text('{"schema": "another"}')
    (tmp_path / "x.broken.json").write_text("{")
    (tmp_path / "xy.noted.json").write_text((tmp_path / "x.noted.json").read_text())
    assert len(read_steps(stem)) == 1
    del global_config["Note"]
    with pytest.raises(WeightsError, match=r"x\.noted\.json' was left by a strategy that is not"):
        read_steps(stem)


def test_hooks_are_those_of_the_steps() -> None:
    model = net()
    assert hooks_of(model) == []
    attach_step(model, Noted("a"))
    assert hooks_of(model) == [Watch]


def test_too_late_for_a_strategy() -> None:
    """What has to come before a step that is there already is refused."""
    model, context = net(), Context({}, (32, 32), weights="w", asked_by="s.yml")
    attach_step(model, plan(model))
    Note.check_weights(model, context)
    attach_step(model, record())
    Free.check_weights(model, context)
    with pytest.raises(Exception, match="'w' are quantized and s.yml asks for Note, which has to"):
        Note.check_weights(model, context)


@pytest.mark.parametrize(
    ("purpose", "trains"),
    [("train", True), ("resume", True), ("use", False), ("prune", False), ("calibrate", False)],
)
def test_context_knows_whether_a_model_is_trained(purpose: Any, trains: bool) -> None:
    assert Context({}, (32, 32), purpose).is_training is trains


def test_postponed_strategy_is_remembered() -> None:
    model, free = net(), Free()
    assert postponed(model) is None
    postpone(model, free)
    assert postponed(model) is free
