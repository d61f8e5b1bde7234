"""Types of the entries of a sensitivity file; pydantic's annotations say what is valid."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Optional

from pydantic import AfterValidator, Field, Strict, StrictInt, WrapValidator

from slim_det.planning.sensitivity.grid import read_shard

Points = dict[str, dict[float, float]]
"""Group name -> {ratio: value}."""


def _distinct(entries: tuple[Any, ...]) -> tuple[Any, ...]:
    for index, entry in enumerate(entries):
        if entry in entries[:index]:
            raise ValueError(f"{entry!r} comes twice")
    return entries


def _with_distinct_keys(
    row: dict[Any, Any], parse: Callable[[Any], dict[float, float]]
) -> dict[float, float]:
    """A row whose ratios stay distinct as numbers; "0.1" and "0.10" are the same."""
    parsed = parse(row)
    if len(parsed) < len(row):
        raise ValueError(f"a ratio comes twice in {', '.join(map(str, row))}")
    return parsed


def _checked_shard(text: str) -> str:
    for part in text.split("+"):
        read_shard(part)
    return text


_Text = Annotated[str, Strict(), Field(min_length=1)]
_Ratio = Annotated[float, Field(gt=0, lt=1)]
_Loss = Annotated[float, Strict(), Field(le=1, allow_inf_nan=False)]
_Ap = Annotated[float, Strict(), Field(ge=0, le=1)]

Name = Annotated[_Text, Field(description="text")]
Digest = Annotated[Optional[_Text], Field(description="text")]
Shard = Annotated[
    Optional[Annotated[_Text, AfterValidator(_checked_shard)]], Field(description="text")
]
Baseline = Annotated[
    Optional[float], Strict(), Field(gt=0, le=1, description="a number above 0 and up to 1")
]
Seconds = Annotated[
    float, Strict(), Field(ge=0, allow_inf_nan=False, description="a finite number from 0")
]
Count = Annotated[int, Strict(), Field(ge=1, description="an integer of 1 or more")]
OptionalCount = Annotated[Optional[Count], Field(description="an integer of 1 or more")]
Seed = Annotated[int, Strict(), Field(ge=0)]
ImageSize = Annotated[Optional[tuple[StrictInt, StrictInt]], Field(description="[height, width]")]
GroupOrder = Annotated[
    tuple[str, ...], AfterValidator(_distinct), Field(description="a list of names")
]
Ratios = Annotated[
    tuple[_Ratio, ...],
    AfterValidator(_distinct),
    AfterValidator(lambda ratios: tuple(sorted(ratios))),
    Field(description="a list of ratios strictly between 0 and 1"),
]
Channels = Annotated[dict[str, Count], Field(description="{group: an integer of 1 or more}")]
Losses = Annotated[
    dict[str, Annotated[dict[_Ratio, _Loss], WrapValidator(_with_distinct_keys)]],
    Field(description="{group: {ratio strictly between 0 and 1: finite loss up to 1}}"),
]
Aps = Annotated[
    dict[str, Annotated[dict[_Ratio, _Ap], WrapValidator(_with_distinct_keys)]],
    Field(description="{group: {ratio strictly between 0 and 1: AP from 0 to 1}}"),
]
