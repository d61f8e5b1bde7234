"""One line for every kind of mistake, in the words of its field."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest
from pydantic import AfterValidator, Field, Strict

from slim_det.core.errors import ConfigError, QuantError
from slim_det.core.schema import check_keys, validated


def _even(value: int) -> int:
    if value % 2:
        raise ValueError(f"{value} is odd; expected an even number")
    return value


@dataclass(frozen=True)
class Oven:
    count: Annotated[int, Strict(), Field(ge=1, description="a whole number of 1 or more")]
    mode: Literal["fan", "grill"] = "fan"
    trays: Annotated[tuple[str, ...], Field(description="a list of names")] = ()
    height: Annotated[int, AfterValidator(_even), Field(description="a number")] = 2
    baked: Annotated[dict[str, dict[int, int]], Field(description="{name: {tray: count}}")] = field(
        default_factory=dict
    )


def test_only_defaults() -> None:
    assert validated(Oven, {"count": 1}, "Oven.") == Oven(1, "fan", (), 2, {})


def test_every_field() -> None:
    values = {"count": 3, "mode": "grill", "trays": ["a", "b"], "height": 4}
    assert validated(Oven, values, "Oven.") == Oven(3, "grill", ("a", "b"), 4)
    assert values["trays"] == ["a", "b"]


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({}, "Oven.count is missing"),
        ({"count": 0}, "Oven.count: 0 is not valid; expected a whole number of 1 or more"),
        ({"count": True}, "Oven.count: True is not valid; expected a whole number of 1 or more"),
        ({"count": "3"}, "Oven.count: '3' is not valid; expected a whole number of 1 or more"),
        ({"count": 1, "mode": "gril"}, "Oven.mode: unknown type 'gril'; did you mean 'grill'?"),
        ({"count": 1, "mode": None}, "Oven.mode: unknown type None; valid: fan, grill"),
        ({"count": 1, "trays": ["a", 3]}, "Oven.trays: ['a', 3] is not valid; expected a list "),
        ({"count": 1, "trays": [*"abcdefg", 3]}, "Oven.trays: 3 is not valid; expected a list of "),
        ({"count": 1, "baked": {"b": {2: "x"}}}, "Oven.baked.b: 'x' is not valid; expected {name"),
        ({"count": 1, "baked": {"b": []}}, "Oven.baked.b: [] is not valid; expected {name"),
        ({"count": 1, "height": 3}, "Oven.height: 3 is odd; expected an even number"),
    ],
)
def test_the_first_mistake_is_one_line(values: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validated(Oven, values, "Oven.")
    assert str(caught.value).startswith(line) and "\n" not in str(caught.value)


def test_the_error_and_the_spelling_are_those_of_the_caller() -> None:
    with pytest.raises(QuantError, match=r"^file: number is missing$"):
        validated(Oven, {}, "file: ", QuantError, spelled={"count": "number"})


def test_fields_with_a_default_can_be_asked_for() -> None:
    with pytest.raises(ConfigError, match=r"^Oven.mode is missing$"):
        validated(Oven, {"count": 1}, "Oven.", complete=True)


def test_known_keys_pass() -> None:
    check_keys({}, {"a"}, "Oven")
    check_keys({"a": 1}, {"a", "b"}, "Oven")


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"coun": 1}, "Oven: unknown key 'coun'; did you mean 'count'?"),
        ({8: 1}, "Oven: unknown key '8'; valid: count, mode"),
        ([1], r"Oven: expected a mapping of keys, found \[1\]"),
        (None, "Oven: expected a mapping of keys, found None"),
    ],
)
def test_unknown_keys_and_no_mapping(values: Any, line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        check_keys(values, {"count", "mode"}, "Oven")
