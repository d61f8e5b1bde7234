"""The result as a file, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from rich.console import Console

from slim_det.core.errors import SensitivityError, SlimDetError
from slim_det.planning.sensitivity.result import (
    Conditions,
    Request,
    SensitivityResult,
    Sources,
    loss_table,
    read_result,
    write_result,
)
from tests.planning.sensitivity.results import DIGEST, complete_results, small_bands, small_result


def written(folder: Path, data: Any) -> Path:
    path = folder / "sensitivity.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    return path


def refused(path: Path) -> str:
    """Reading fails in one line that names the file."""
    with pytest.raises(SensitivityError) as caught:
        read_result(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


def test_a_result_of_nothing(tmp_path: Path) -> None:
    empty = small_result(request=Request((), ()), groups={}, ap={}, seconds=0.0)
    assert empty.complete and empty.missing == []
    write_result(tmp_path / "empty.json", empty)
    assert read_result(tmp_path / "empty.json") == empty


def test_the_keys_of_the_file(tmp_path: Path) -> None:
    write_result(tmp_path / "new" / "s.json", small_result(bands=small_bands()))
    data = json.loads((tmp_path / "new" / "s.json").read_text())
    assert data.pop("slim_det")
    assert data == {
        "schema": "slim_det.sensitivity/1",
        "metric": "voc_map_11point",
        "baseline": 0.5,
        "num_images": 364,
        "criterion": "l1_norm",
        "image_size_hw": [320, 416],
        "fingerprint": DIGEST,
        "weights_sha256": "w" * 64,
        "data_sha256": "d" * 64,
        "config_sha256": "c" * 64,
        "seconds": 12.5,
        "shard": None,
        "ratios": [0.1, 0.5],
        "group_order": ["route", "tip"],
        "channels": {"route": 512, "tip": 1024},
        "groups": {"route": {"0.1": 0.0, "0.5": 0.5}, "tip": {"0.1": -0.2, "0.5": 0.9}},
        "ap": {"route": {"0.1": 0.5, "0.5": 0.25}, "tip": {"0.1": 0.6, "0.5": 0.05}},
        "bootstrap": {
            "samples": 200,
            "seed": 7,
            "low": {"route": {"0.1": -0.1, "0.5": 0.4}, "tip": {"0.1": -0.3, "0.5": 0.8}},
            "high": {"route": {"0.1": 0.1, "0.5": 0.6}, "tip": {"0.1": -0.1, "0.5": 0.95}},
        },
    }


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(result=complete_results())
def test_what_is_written_is_read(tmp_path: Path, result: SensitivityResult) -> None:
    path = tmp_path / "s.json"
    write_result(path, result)
    again = read_result(path)
    assert again == result
    assert list(again.groups) == list(result.request.group_order)
    content = path.read_bytes()
    write_result(path, again)
    assert path.read_bytes() == content


def test_the_least_that_a_file_must_have(tmp_path: Path) -> None:
    data = {
        "schema": "slim_det.sensitivity/1",
        "metric": "coco_ap",
        "criterion": "fpgm",
        "groups": {"b": {"0.50": 1, "0.1": 0}, "a": {"0.1": 0.5}},
        "of somebody else": True,
    }
    result = read_result(written(tmp_path, data))
    assert result.groups == {"b": {0.1: 0.0, 0.5: 1.0}, "a": {0.1: 0.5}}
    assert result.request == Request(("b", "a"), (0.1, 0.5))
    assert result.baseline is None and result.conditions.num_images is None
    assert result.sources == Sources()
    assert result.missing == [("a", 0.5)] and not result.complete
    assert (result.metric, result.criterion) == ("coco_ap", "fpgm")


def test_groups_and_ratios_are_put_in_order() -> None:
    result = small_result(
        groups={"tip": {0.5: 0.9, 0.1: -0.2}, "route": {}},
        ap={"route": {}, "tip": {0.5: 0.05, 0.1: 0.6}},
    )
    assert list(result.groups) == ["tip"] and list(result.groups["tip"]) == [0.1, 0.5]
    assert list(result.ap) == ["tip"] and list(result.ap["tip"]) == [0.1, 0.5]
    assert result.missing == [("route", 0.1), ("route", 0.5)]


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "\x00", "{}" * 2, "[" * 100_000])
def test_a_file_of_something_else(tmp_path: Path, text: str) -> None:
    assert "cannot be read" in (message := refused(written(tmp_path, text))) or (
        "is not a sensitivity file" in message
    )


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert "does not exist" in refused(tmp_path / "none.json")
    assert "cannot be read" in refused(tmp_path)


def test_another_schema(tmp_path: Path) -> None:
    assert "schema is 'slim_det.plan/1'" in refused(
        written(tmp_path, {"schema": "slim_det.plan/1"})
    )


def test_a_key_that_comes_twice(tmp_path: Path) -> None:
    text = json.dumps(small_result().as_dict()).replace('"0.5": 0.9', '"0.1": 0.9')
    assert "key '0.1' comes twice" in refused(written(tmp_path, text))


def test_a_file_cut_short(tmp_path: Path) -> None:
    text = json.dumps(small_result().as_dict())
    for size in range(0, len(text), 7):
        refused(written(tmp_path, text[:size]))


DAMAGE: dict[str, list[Any]] = {
    "metric": [None, "", 3],
    "criterion": [None, ["l1_norm"]],
    "baseline": ["0.5", 0, -0.1, 1.1, True, float("nan"), float("inf"), 10**400],
    "num_images": [0, -(10**400), -1, 3.5, "many", True],
    "image_size_hw": [320, [320], [320, 320, 3], ["a", "b"]],
    "fingerprint": [7, ""],
    "weights_sha256": [[]],
    "data_sha256": [1.5],
    "config_sha256": [{}],
    "seconds": ["long", -1, float("inf"), 10**400],
    "shard": [2, "2", "0/4", "5/4", "1/4+"],
    "ratios": [0.1, ["a"], [0], [1], [0.1], [0.1, 0.5, 0.5], [None], [True]],
    "group_order": ["route", ["route"], ["route", "tip", "tip"], [1, 2]],
    "channels": [[], {"route": 0}, {"route": 1.5}, {"other": 8}],
    "groups": [None, [], {"route": 1}, {"route": {"0.1": None}}, {"other": {"0.1": 0.0}}]
    + [{"route": {ratio: 0.0}} for ratio in ("0", "1", "nan", "a", "", "0.2")]
    + [{"route": {"0.1": loss}} for loss in ("0.0", True, float("nan"), float("-inf"), 1.01)]
    + [{"route": {"0.1": 0.0, "0.10": 0.0}}],
    "ap": [[], {"route": {"0.1": 0.5}}, {"route": {"0.1": -0.1}}, {"route": {"0.1": 1.1}}],
    "bootstrap": [[], {}, {"samples": 0}, {"samples": 9, "seed": 0, "low": {}, "high": {}}],
}


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in DAMAGE.items() for value in values]
)
def test_a_damaged_entry(tmp_path: Path, key: str, value: Any) -> None:
    data = {**small_result(bands=small_bands()).as_dict(), key: value}
    message = refused(written(tmp_path, data))
    named = {"shard": "shard", "ratios": "ratio", "group_order": "group_order"}.get(key, key)
    named = {"bootstrap": ""}.get(key, named)
    assert "is damaged" in message and named in message


@pytest.mark.parametrize("key", ["metric", "criterion", "groups"])
def test_a_missing_entry(tmp_path: Path, key: str) -> None:
    data = small_result().as_dict()
    del data[key]
    assert f"{key} is missing" in refused(written(tmp_path, data))


def test_nothing_that_cannot_be_read_is_written(tmp_path: Path) -> None:
    path = written(tmp_path, "old")
    bad = small_result(conditions=Conditions("coco_ap", float("nan"), 3, "fpgm"))
    with pytest.raises(SlimDetError, match="baseline"):
        write_result(path, bad)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_one_line_for_people() -> None:
    assert str(small_result()) == (
        "voc_map_11point, baseline 0.5000 on 364 images: all 4 points of 2 groups by l1_norm; 12 s"
    )
    partial = small_result(
        conditions=Conditions("unknown", None, None, "l1_norm"),
        sources=Sources(),
        request=Request(("route", "tip"), (0.1, 0.5), shard="1/2"),
        groups={"route": {0.1: 0.0}},
        ap={},
    )
    assert str(partial) == (
        "unknown, baseline unknown on an unknown number of images: incomplete, 1 of 4 points of "
        "2 groups by l1_norm, shard 1/2; 12 s"
    )


def shown(result: SensitivityResult) -> list[list[str]]:
    console = Console(width=120, no_color=True)
    with console.capture() as capture:
        console.print(loss_table(result))
    return [line.split() for line in capture.get().splitlines()]


def test_the_table_marks_the_worst_of_each_column() -> None:
    assert shown(small_result()) == [
        ["loss", "in", "%,", "cut", "by", "0.1", "0.5"],
        ["route", "0.0", "50.0"],
        ["tip", "-20.0", "90.0*"],
    ]


def test_the_table_of_an_incomplete_result() -> None:
    partial = small_result(groups={"tip": {0.1: 0.004}}, ap={})
    assert shown(partial)[1:] == [["route", "-", "-"], ["tip", "0.4*", "-"]]


def test_names_with_brackets_are_shown_as_they_are() -> None:
    result = small_result(
        request=Request(("a[red]b",), (0.1,)), groups={"a[red]b": {0.1: 0.0}}, ap={}
    )
    assert shown(result)[1] == ["a[red]b", "0.0"]
