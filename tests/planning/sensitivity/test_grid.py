"""Ratios, keys and shards, against values worked out by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slim_det.core.errors import ConfigError
from slim_det.planning.sensitivity.grid import key_of, read_ratios, read_shard, split


@pytest.mark.parametrize(
    ("text", "ratios"),
    [
        ("0.5", [0.5]),
        ("0.1:0.9:0.1", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]),
        ("0.1:0.35:0.1", [0.1, 0.2, 0.3]),
        ("0.4:0.4:0.1", [0.4]),
        (".05:.15:.05", [0.05, 0.1, 0.15]),
        ("0.1,0.2 0.5", [0.1, 0.2, 0.5]),
        (" 0.5,\t0.25,\n1e-3, ", [0.001, 0.25, 0.5]),
        ("0.9 0.1:0.3:0.1", [0.1, 0.2, 0.3, 0.9]),
        ("0.001:0.999:0.001", [i / 1000 for i in range(1, 1000)]),
    ],
)
def test_ratios(text: str, ratios: list[float]) -> None:
    assert read_ratios(text) == ratios


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("", "none are given"),
        (" , ", "none are given"),
        ("0.1,half", "'half' is not a number"),
        ("0.1 nan", "'nan' is not a number"),
        ("inf", "'inf' is not a number"),
        ("0.1::0.9", "'0.1::0.9' is not a number"),
        ("0.1:0.9", "'0.1:0.9' is not start:end:step"),
        ("0.1:0.9:0.1:2", "is not start:end:step"),
        ("0", "'0' is not strictly between 0 and 1"),
        ("1", "'1' is not strictly between 0 and 1"),
        ("0.2 -0.1", "'-0.1' is not strictly between"),
        ("0:0.5:0.1", "'0:0.5:0.1' is not strictly between"),
        ("0.5:1.0:0.1", "'0.5:1.0:0.1' is not strictly between"),
        ("0.99999999999999999999", "is not strictly between"),
        ("1e-999", "is not strictly between"),
        ("30", "; write 0.3"),
        ("0.1:0.9:0", "step of '0.1:0.9:0' is not above 0"),
        ("0.1:0.9:-0.1", "is not above 0"),
        ("0.9:0.1:0.1", "'0.9:0.1:0.1' starts above its end"),
        ("0.1:0.9:1e-999999", "more than 1000"),
        ("0.0001:0.06:0.0001 0.0601:0.15:0.0001", "more than 1000"),
        ("0.1,0.10", "0.1 is given twice, by 0.1 and 0.10"),
        ("0.3 0.1:0.5:0.1", "0.3 is given twice"),
    ],
)
def test_bad_ratios(text: str, phrase: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_ratios(text)
    assert phrase in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("ratio", "key"), [(0.1, "0.1"), (0.30, "0.3"), (0.125, "0.125"), (1e-05, "0.00001")]
)
def test_key(ratio: float, key: str) -> None:
    assert key_of(ratio) == key


@given(st.floats(0, 1, exclude_min=True, exclude_max=True, allow_subnormal=False))
def test_a_key_reads_as_the_same_number(ratio: float) -> None:
    assert float(key_of(ratio)) == ratio
    assert read_ratios(key_of(ratio)) == [ratio]


@pytest.mark.parametrize(
    ("costs", "parts", "lengths"),
    [
        ([], 1, [0]),
        ([], 3, [0, 0, 0]),
        ([5.0], 1, [1]),
        ([5.0], 3, [1, 0, 0]),
        ([1, 1, 1, 1, 1, 1], 3, [2, 2, 2]),
        ([0, 0, 0, 0], 2, [2, 2]),
        ([3, 1, 1, 1], 2, [1, 3]),
        ([1, 1, 1, 3], 2, [3, 1]),
        ([100, 1, 1], 3, [1, 1, 1]),
        ([1, 1, 100], 3, [1, 1, 1]),
    ],
)
def test_split(costs: list[float], parts: int, lengths: list[int]) -> None:
    assert [len(part) for part in split(costs, parts)] == lengths


@given(st.lists(st.floats(0, 100), max_size=40), st.integers(1, 12))
def test_every_candidate_is_in_one_part(costs: list[float], parts: int) -> None:
    ranges = split(costs, parts)
    assert len(ranges) == parts
    assert [index for part in ranges for index in part] == list(range(len(costs)))
    assert sum(len(part) > 0 for part in ranges) == min(parts, len(costs))
    most_expensive = max((sum(costs[index] for index in part) for part in ranges), default=0)
    assert most_expensive <= sum(costs) / parts + max(costs, default=0) + 1e-9


@pytest.mark.parametrize(
    ("costs", "parts"), [([1.0], 0), ([-1.0], 1), ([math.nan], 1), ([math.inf], 1)]
)
def test_impossible_splits(costs: list[float], parts: int) -> None:
    with pytest.raises(ValueError):
        split(costs, parts)


@pytest.mark.parametrize(
    ("text", "shard"), [("1/1", (0, 1)), ("2/4", (1, 4)), (" 4/4 ", (3, 4)), ("1/1000", (0, 1000))]
)
def test_shard(text: str, shard: tuple[int, int]) -> None:
    assert read_shard(text) == shard


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("", "not of the form i/n"),
        ("2", "not of the form i/n"),
        ("a/4", "not of the form i/n"),
        ("-1/4", "not of the form i/n"),
        ("1.0/4", "not of the form i/n"),
        ("0/4", "counted from 1/4 to 4/4"),
        ("5/4", "counted from 1/4 to 4/4"),
        ("1/0", "1 to 1000 parts"),
        ("1/1001", "1 to 1000 parts"),
    ],
)
def test_bad_shards(text: str, phrase: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_shard(text)
    assert phrase in str(caught.value) and f"'{text}'" in str(caught.value)
