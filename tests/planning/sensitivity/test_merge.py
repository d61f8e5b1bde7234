"""Merging: the parts of a run are the run, and contradictions are refused."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slim_det.core.errors import SensitivityError
from slim_det.planning.sensitivity.merge import merge_results
from slim_det.planning.sensitivity.result import Bands, Points, Request, SensitivityResult, Sources
from tests.planning.sensitivity.results import complete_results, small_bands, small_result


def part_of(
    complete: SensitivityResult, points: set[tuple[str, float]], shard: str | None
) -> SensitivityResult:
    """The result of a shard that measured ``points``."""

    def chosen(table: Points) -> Points:
        return {n: {r: v for r, v in row.items() if (n, r) in points} for n, row in table.items()}

    bands = complete.bands
    if bands:
        bands = Bands(bands.samples, bands.seed, chosen(bands.low), chosen(bands.high))
    return replace(
        complete,
        request=replace(complete.request, shard=shard),
        groups=chosen(complete.groups),
        ap=chosen(complete.ap),
        bands=bands,
    )


def shards(complete: SensitivityResult, count: int) -> list[SensitivityResult]:
    points = [(n, r) for n, row in complete.groups.items() for r in row]
    return [part_of(complete, set(points[i::count]), f"{i + 1}/{count}") for i in range(count)]


def without_seconds(result: SensitivityResult) -> SensitivityResult:
    return replace(result, seconds=0.0)


def test_nothing() -> None:
    with pytest.raises(SensitivityError, match="no sensitivity file to merge"):
        merge_results([])


def test_a_name_too_few() -> None:
    with pytest.raises(ValueError, match="1 names for 2 results"):
        merge_results(shards(small_result(), 2), ["a.json"])


def test_one() -> None:
    for one in (small_result(), small_result(bands=small_bands()), shards(small_result(), 3)[1]):
        assert merge_results([one]) == one


def test_two_shards_are_the_run() -> None:
    complete = small_result(bands=small_bands())
    merged = merge_results(shards(complete, 2))
    assert merged == replace(complete, seconds=25.0)
    assert merged.complete and merged.request.shard is None
    assert list(merged.groups) == ["route", "tip"] and list(merged.ap) == ["route", "tip"]


def test_a_missing_shard_is_told() -> None:
    first, _, third = shards(small_result(), 3)
    merged = merge_results([third, first])
    assert merged.request.shard == "1/3+3/3"
    assert merged.missing == [("route", 0.5)] and "incomplete, 3 of 4" in str(merged)
    again = merge_results([merged, shards(small_result(), 3)[1]])
    assert without_seconds(again) == without_seconds(small_result())


def test_a_shard_without_points_has_no_say_in_the_bootstrap() -> None:
    complete = small_result(bands=small_bands())
    empty = replace(part_of(complete, set(), "2/2"), bands=None)
    for order in ([complete, empty], [empty, complete]):
        assert without_seconds(merge_results(order)) == without_seconds(complete)
    other = replace(empty, bands=Bands(samples=200, seed=8, low={}, high={}))
    for order in ([complete, other], [other, complete], [part_of(complete, set(), "1/2"), other]):
        with pytest.raises(SensitivityError, match="bootstrap"):
            merge_results(order)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), complete=complete_results())
def test_any_parts_in_any_order_are_the_run(
    data: st.DataObject, complete: SensitivityResult
) -> None:
    points = [(n, r) for n, row in complete.groups.items() for r in row]
    owners = [data.draw(st.sets(st.integers(0, 2), min_size=1)) for _ in points]
    parts = [
        part_of(complete, {p for p, own in zip(points, owners) if i in own}, f"{i + 1}/3")
        for i in range(3)
    ]
    parts = [replace(p, seconds=data.draw(st.floats(0, 1e9))) for p in parts]
    merged = merge_results(parts)
    assert without_seconds(merged) == without_seconds(complete)
    assert str(merged.as_dict()["groups"]) == str(complete.as_dict()["groups"])
    for order in itertools.permutations(parts):
        assert merge_results(order).as_dict() == merged.as_dict()
    two = merge_results(parts[:2])
    assert two == merge_results(parts[1::-1])
    assert two.complete == ({p for p, own in zip(points, owners) if own & {0, 1}} == set(points))


@settings(max_examples=60, deadline=None)
@given(left=complete_results(), right=complete_results())
def test_merging_does_not_ask_which_came_first(
    left: SensitivityResult, right: SensitivityResult
) -> None:
    right = replace(right, conditions=left.conditions)

    def outcome(order: list[SensitivityResult]) -> Any:
        try:
            return merge_results(order).as_dict()
        except SensitivityError:
            return "refused"

    assert outcome([left, right]) == outcome([right, left])


def test_runs_of_other_groups_and_ratios_are_united() -> None:
    one = small_result(
        request=Request(("a", "c"), (0.1,), {"a": 8, "c": 16}),
        groups={"a": {0.1: 0.1}, "c": {0.1: 0.2}},
        ap={},
    )
    two = small_result(
        request=Request(("b", "c"), (0.5,), {"b": 4, "c": 16}),
        groups={"b": {0.5: 0.3}, "c": {0.5: 0.4}},
        ap={},
    )
    merged = merge_results([two, one])
    assert merged.request == Request(("a", "b", "c"), (0.1, 0.5), {"a": 8, "b": 4, "c": 16})
    assert merged.groups == {"a": {0.1: 0.1}, "b": {0.5: 0.3}, "c": {0.1: 0.2, 0.5: 0.4}}
    assert merged.missing == [("a", 0.5), ("b", 0.1)]


def test_imported_files_merge() -> None:
    base = small_result()
    unknown = replace(base.conditions, metric="unknown", baseline=None, num_images=None)
    old = replace(base, conditions=unknown, sources=Sources(), ap={}, seconds=0.0)
    merged = merge_results(shards(old, 2))
    assert merged == old and merged.baseline is None


CHANGES: dict[str, dict[str, Any]] = {
    "metric": {"conditions": {"metric": "coco_ap"}},
    "baseline": {"conditions": {"baseline": 0.5 + 1e-8}},
    "num_images": {"conditions": {"num_images": 363}},
    "criterion": {"conditions": {"criterion": "fpgm"}},
    "image_size_hw": {"conditions": {"image_size_hw": (416, 320)}},
    "fingerprint": {"sources": {"fingerprint": "other"}},
    "weights_sha256": {"sources": {"weights_sha256": None}},
    "data_sha256": {"sources": {"data_sha256": "other"}},
    "config_sha256": {"sources": {"config_sha256": "other"}},
    "channels.tip": {"request": {"channels": {"tip": 512}}},
    "group_order": {"request": {"group_order": ("tip", "route")}},
    "bootstrap": {"bands": {"seed": 8}},
}


@pytest.mark.parametrize("entry", CHANGES)
def test_what_must_be_the_same(entry: str) -> None:
    base = small_result(bands=small_bands())
    ((part, changes),) = CHANGES[entry].items()
    other = replace(base, **{part: replace(getattr(base, part), **changes)})
    for order, names in (([base, other], ["a.json", "b.json"]), ([other, base], ["b", "a"])):
        with pytest.raises(SensitivityError) as caught:
            merge_results(order, names)
        assert entry in str(caught.value) and "\n" not in str(caught.value)
        if entry != "group_order":
            assert all(f"'{name}'" in str(caught.value) for name in names)


def test_an_unknown_baseline_is_not_a_known_one() -> None:
    base = small_result()
    other = replace(base, conditions=replace(base.conditions, baseline=None))
    with pytest.raises(SensitivityError, match="baseline"):
        merge_results([base, other])


@pytest.mark.parametrize("table", ["groups", "ap"])
def test_a_point_that_two_files_hold(table: str) -> None:
    base = small_result()
    values = getattr(base, table)

    def moved(by: float) -> SensitivityResult:
        tip = {**values["tip"], 0.1: values["tip"][0.1] + by}
        return replace(base, **{table: {**values, "tip": tip}})

    assert without_seconds(merge_results([base, moved(5e-10)])) == without_seconds(base)
    for others in ([moved(2e-9)], [moved(8e-10), moved(16e-10)]):
        for order in itertools.permutations([base, *others]):
            with pytest.raises(SensitivityError, match=f"{table}.tip.0.1 is "):
                merge_results(order)
