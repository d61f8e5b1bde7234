"""Every way of writing layers and ratios, and every mistake in doing so."""

from __future__ import annotations

from typing import Any

import pytest

from slim_det.compress.prune.requests import read_requests
from slim_det.core.errors import ConfigError
from slim_det.detectors.yolov3_head import PRESETS, YOLO_HEAD_LAYERS


@pytest.mark.parametrize(
    ("params", "ratios", "pairs"),
    [
        (None, 0.5, [("all", 0.5)]),
        ("all", 0.5, [("all", 0.5)]),
        ("neck.*", 0.25, [("neck.*", 0.25)]),
        (["a", "b"], 0.25, [("a", 0.25), ("b", 0.25)]),
        (["a", "b"], [0.25, 0.75], [("a", 0.25), ("b", 0.75)]),
        (("a", "b"), (0.25, 0.75), [("a", 0.25), ("b", 0.75)]),
        (["a"], [0.25], [("a", 0.25)]),
        (None, {"a": 0.25, "b*": 0.75}, [("a", 0.25), ("b*", 0.75)]),
        (["a"], "0.25", [("a", 0.25)]),  # what a command line passes on
        (["a"], 1e-9, [("a", 1e-9)]),
        (["a"], 0.999, [("a", 0.999)]),
    ],
)
def test_ways_of_writing(params: Any, ratios: Any, pairs: list[tuple[str, float]]) -> None:
    assert read_requests(params, ratios) == pairs


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("params", [None, "yolo_head"])
def test_a_preset_names_the_18_layers(preset: str, params: str | None) -> None:
    pairs = read_requests(params, preset)
    assert [name for name, _ in pairs] == list(YOLO_HEAD_LAYERS)
    assert dict(pairs) == PRESETS[preset]


def test_the_head_with_one_ratio_or_18() -> None:
    assert read_requests("yolo_head", 0.5) == [(name, 0.5) for name in YOLO_HEAD_LAYERS]
    ratios = [(i + 1) / 20 for i in range(18)]
    assert read_requests("yolo_head", ratios) == list(zip(YOLO_HEAD_LAYERS, ratios))


@pytest.mark.parametrize(
    "value", [0, 0.0, 1, 1.0, 1.5, -0.1, float("nan"), "a", "nan", True, False, None, [0.5]]
)
def test_a_ratio_out_of_range(value: Any) -> None:
    message = r"ratio .* for 'layer' is not valid; expected a number between 0 and 1"
    with pytest.raises(ConfigError, match=message):
        read_requests(["layer"], [value])
    with pytest.raises(ConfigError, match=message):
        read_requests(None, {"layer": value})


@pytest.mark.parametrize("value", [0, 1, 1.5, True, float("nan"), float("inf"), "nan", "2"])
def test_one_ratio_for_all_out_of_range(value: Any) -> None:
    with pytest.raises(ConfigError, match="for 'all layers' is not valid"):
        read_requests(None, value)


@pytest.mark.parametrize(
    ("params", "ratios", "message"),
    [
        (None, None, r"pruned_ratios is missing; expected .* preset \(r578, sensity\)"),
        (["a"], None, "pruned_ratios is missing"),
        (None, "r758", "unknown preset 'r758'; did you mean 'r578'"),
        (None, "a", "unknown preset 'a'; valid: r578, sensity"),
        (None, "", "unknown preset ''; valid"),
        (["a"], "r578", "preset 'r578' names its own layers; leave pruned_params out"),
        (["a", "b"], [0.5], "2 pruned_params but 1 pruned_ratios; expected one ratio per layer"),
        (["a"], [0.5, 0.5], "1 pruned_params but 2 pruned_ratios"),
        ("yolo_head", [0.5] * 17, "18 pruned_params but 17 pruned_ratios"),
        (None, [0.5, 0.5], "1 pruned_params but 2 pruned_ratios"),
        (["a"], [], "1 pruned_params but 0 pruned_ratios"),
        (["a"], {"a": 0.5}, "mapping that names its own layers; leave pruned_params out"),
        (None, {}, "pruned_ratios is empty; expected layer names with ratios"),
        ([], 0.5, r"pruned_params: \[\] is not valid; expected a list of layers"),
        (5, 0.5, "pruned_params: 5 is not valid"),
        ({"a": 0.5}, 0.5, "expected a list of layers"),
    ],
)
def test_mistakes_are_named(params: Any, ratios: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read_requests(params, ratios)
    assert "\n" not in str(caught.value)
