"""Settings of a distillation: schedules, defaults, and every mistake in one line."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slim_det.compress.distill.losses import LOSSES
from slim_det.compress.distill.settings import Schedule, Term, read_factor, read_terms
from slim_det.core.errors import ConfigError

TIP = "neck.yolo_block.0.tip"


def pair(loss: str = "fsp", **changes: Any) -> dict[str, Any]:
    return {"student": TIP, "teacher": "backbone.conv1", "loss": loss, **changes}


def refused(*args: Any, **kwargs: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        read_terms(*args, **kwargs)
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_nothing_to_do() -> None:
    for pairs in (None, []):
        line = refused(None, pairs=pairs)
        assert line.startswith("Distill: neither a loss of the outputs nor pairs of layers")
        assert "loss: l2, split, dml, ppyoloe or ld, or pairs" in line


def test_the_default_is_the_published_l2() -> None:
    assert read_terms() == (Term("l2", "l2", None, None, 100.0, 1.0, Schedule()),)


@pytest.mark.parametrize(("loss", "weight"), [("l2", 100), ("split", 1000), ("dml", 1)])
def test_published_weights(loss: str, weight: float) -> None:
    assert [term.weight for term in read_terms(loss)] == [weight]
    assert [term.weight for term in read_terms(loss, 7)] == [7]


def test_pairs_come_in_order_with_the_defaults_of_their_loss() -> None:
    terms = read_terms("split", 2, [pair("cwd"), pair("soft_label", weight="1e-3", temperature=4)])
    assert [(term.name, term.weight, term.temperature) for term in terms] == [
        ("split", 2.0, 1.0),
        ("cwd", 5.0, 1.0),
        ("soft_label", 0.001, 4.0),
    ]
    assert [(term.student, term.teacher) for term in terms] == [
        (None, None),
        (TIP, "backbone.conv1"),
        (TIP, "backbone.conv1"),
    ]


def test_pair_may_be_of_the_yolo_outputs() -> None:
    (term,) = read_terms(None, pairs=[{"loss": "l2", "weight": 3}])
    assert (term.student, term.teacher, term.weight) == (None, None, 3.0)


def test_factors_that_are_not_given_keep_their_defaults() -> None:
    (term,) = read_terms(None, pairs=[pair("fgd", factors={"beta": "2e-3"}, normalize=True)])
    assert term.factors == {"alpha": 0.001, "beta": 0.002, "gamma": 0.001, "lambda": 0.000005}
    assert term.normalize
    (outputs,) = read_terms("ppyoloe", factors={"ld": 20000})
    assert outputs.factors == {"class": 1.0, "iou": 2.5, "dfl": 0.5, "ld": 20000.0}


@pytest.mark.parametrize("value", [0, -1, True, "much"])
def test_a_factor_is_above_zero(value: Any) -> None:
    with pytest.raises(ConfigError, match="^Distill: total_factor: .* expected a number above 0"):
        read_factor("Distill: total_factor", value)
    assert read_factor("Distill: total_factor", 0.125) == 0.125


def test_names_are_unique() -> None:
    terms = read_terms("l2", pairs=[pair("fsp"), {"loss": "l2"}, pair("fsp"), pair("cwd")])
    assert [term.name for term in terms] == ["l2_0", "fsp_0", "l2_1", "fsp_1", "cwd"]
    assert [term.loss for term in terms] == ["l2", "fsp", "l2", "fsp", "cwd"]


def test_pairs_inherit_the_schedule_key_by_key() -> None:
    pairs = [
        pair(),
        pair(start_epoch=4),
        pair(end_epoch=None, ramp_epochs=0),
    ]
    terms = read_terms("l2", None, pairs, start_epoch=2, end_epoch=9, ramp_epochs=1)
    assert [term.schedule for term in terms] == [
        Schedule(2, 9, 1),
        Schedule(2, 9, 1),
        Schedule(4, 9, 1),
        Schedule(2, None, 0),
    ]


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        (Schedule(), [1, 1, 1, 1]),
        (Schedule(2), [0, 0, 1, 1]),
        (Schedule(0, 2), [1, 1, 0, 0]),
        (Schedule(1, 3), [0, 1, 1, 0]),
        (Schedule(0, None, 1), [0.5, 1, 1, 1]),
        (Schedule(1, None, 3), [0, 0.25, 0.5, 0.75, 1, 1]),
        (Schedule(0, 2, 3), [0.25, 0.5, 0, 0]),
    ],
)
def test_factor(schedule: Schedule, factors: list[float]) -> None:
    assert [schedule.factor(epoch) for epoch in range(len(factors))] == factors


@given(
    start=st.integers(0, 20),
    length=st.integers(1, 20),
    ramp=st.integers(0, 20),
    epoch=st.integers(0, 50),
)
def test_factor_grows_until_it_ends(start: int, length: int, ramp: int, epoch: int) -> None:
    schedule = Schedule(start, start + length, ramp)
    factor, later = schedule.factor(epoch), schedule.factor(epoch + 1)
    assert (factor > 0) == (start <= epoch < start + length)
    if 0 < factor and later:
        assert later - factor == pytest.approx(1 / (ramp + 1)) or factor + later >= 1
        assert factor <= later <= 1
    if epoch >= start + ramp and factor:
        assert factor == 1


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"loss": "l_2"}, "Distill: loss: unknown loss 'l_2'; did you mean 'l2'?"),
        ({"loss": 5}, "Distill: loss: unknown loss 5; valid: l2, split, fsp, "),
        ({"loss": ["l2"]}, "Distill: loss: unknown loss ['l2']"),
        ({"loss": "fsp"}, "Distill: loss: 'fsp' compares layers, not outputs; expected l2, "),
        ({"weight": -1}, "Distill: weight: -1 is not valid; expected a number above 0"),
        ({"weight": 0}, "Distill: weight: 0 is not valid; expected a number above 0"),
        ({"weight": True}, "Distill: weight: True is not valid; expected a number above 0"),
        ({"weight": "many"}, "Distill: weight: 'many' is not valid; expected a number above 0"),
        ({"weight": [1]}, "Distill: weight: [1] is not valid; expected a number above 0"),
        ({"weight": float("inf")}, "Distill: weight: inf is not valid; expected a number above 0"),
        ({"weight": float("nan")}, "Distill: weight: nan is not valid; expected a number above 0"),
        ({"loss": None, "weight": 1}, "Distill: weight: 1 is given for no loss"),
        ({"pairs": "fsp"}, "Distill: pairs: expected a list of pairs of layers, got 'fsp'"),
        ({"pairs": {"loss": "fsp"}}, "Distill: pairs: expected a list of pairs of layers, got {"),
        ({"pairs": 3}, "Distill: pairs: expected a list of pairs of layers, got 3"),
        (
            {"start_epoch": -1},
            "Distill: start_epoch: -1 is not valid; expected a whole number >= 0",
        ),
        (
            {"start_epoch": None},
            "Distill: start_epoch: None is not valid; expected a whole number >= 0",
        ),
        ({"end_epoch": "5"}, "Distill: end_epoch: '5' is not valid; expected a whole number >= 0"),
        (
            {"end_epoch": True},
            "Distill: end_epoch: True is not valid; expected a whole number >= 0",
        ),
        (
            {"ramp_epochs": 1.5},
            "Distill: ramp_epochs: 1.5 is not valid; expected a whole number >= 0",
        ),
        ({"end_epoch": 0}, "Distill: end_epoch: expected more than start_epoch 0, got 0"),
        (
            {"start_epoch": 5, "end_epoch": 3},
            "Distill: end_epoch: expected more than start_epoch 5, got 3",
        ),
    ],
)
def test_mistake(settings: dict[str, Any], said: str) -> None:
    assert refused(**settings).startswith(said)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("fsp", "expected {student: LAYER, teacher: LAYER, loss: NAME}, got 'fsp'"),
        (None, "expected {student: LAYER, teacher: LAYER, loss: NAME}, got None"),
        (pair(wieghts=1), "unknown key 'wieghts'; did you mean 'weight'?"),
        (pair(normalize=1), "normalize: 1 is not valid; expected true or false"),
        ({"loss": "l2", "normalize": True}, "normalize: loss 'l2' compares outputs"),
        (pair(factors={"alpha": 1}), "factors: loss 'fsp' has one part; leave them out"),
        (pair("fgd", factors={"alpa": 1}), "factors: unknown key 'alpa'; did you mean 'alpha'?"),
        (pair("fgd", factors={"alpha": -1}), "factors.alpha: -1 is not valid; expected"),
        (pair(loss="fps"), "loss: unknown loss 'fps'; did you mean 'fsp'?"),
        ({"student": TIP, "teacher": TIP}, "no loss is given; expected one of l2, split, fsp"),
        (pair(weight=-1), "weight: -1 is not valid; expected a number above 0"),
        (pair(student=None), "student: no layer is given; loss 'fsp' compares two"),
        ({"student": TIP, "loss": "cwd"}, "teacher: no layer is given; loss 'cwd' compares two"),
        (pair(teacher=3), "teacher: 3 is not valid; expected the name of a layer"),
        (pair(teacher=""), "teacher: '' is not valid; expected the name of a layer"),
        (pair("split"), "student: loss 'split' reads the outputs and no layer; leave "),
        ({"teacher": TIP, "loss": "l2"}, "teacher: loss 'l2' reads the outputs"),
        (
            pair("fsp", temperature=2),
            "temperature: loss 'fsp' has none; leave it out, or take a loss with one: soft_label",
        ),
        (pair("cwd", temperature=0), "temperature: 0 is not valid; expected a number above 0"),
        (
            pair("cwd", temperature="hot"),
            "temperature: 'hot' is not valid; expected a number above 0",
        ),
        (pair(end_epoch=1), "end_epoch: expected more than start_epoch 1, got 1"),
        (pair(start_epoch=8), "end_epoch: expected more than start_epoch 8, got 6"),
        (pair(ramp_epochs=-2), "ramp_epochs: -2 is not valid; expected a whole number >= 0"),
    ],
)
def test_mistake_in_a_pair(bad: Any, said: str) -> None:
    """The first pair is fine: the message counts from 0."""
    line = refused("l2", None, [pair(), bad], start_epoch=1, end_epoch=6)
    assert line.startswith(f"Distill: pairs[1]: {said}")


@given(st.sampled_from(sorted(LOSSES)), st.floats(1e-6, 1e6), st.integers(0, 9), st.integers(1, 9))
def test_what_is_valid_is_kept(loss: str, weight: float, start: int, length: int) -> None:
    given_pair = {"loss": loss, "weight": weight, "start_epoch": start, "end_epoch": start + length}
    if LOSSES[loss].of_layers:
        given_pair.update(student=TIP, teacher=TIP)
    (term,) = read_terms(None, pairs=[given_pair])
    assert (term.loss, term.weight, term.schedule) == (
        loss,
        weight,
        Schedule(start, start + length),
    )
