"""Results made by hand and at random, for several test modules."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from slim_det.planning.sensitivity.result import (
    Bands,
    Conditions,
    Request,
    SensitivityResult,
    Sources,
)

DIGEST = "0123456789abcdef" * 4


def small_result(**changes: Any) -> SensitivityResult:
    """Two groups at two ratios, baseline 0.5; all losses can be worked out in the head."""
    parts: dict[str, Any] = {
        "conditions": Conditions("voc_map_11point", 0.5, 364, "l1_norm", (320, 416)),
        "sources": Sources(DIGEST, "w" * 64, "d" * 64, "c" * 64),
        "request": Request(("route", "tip"), (0.1, 0.5), {"route": 512, "tip": 1024}),
        "groups": {"route": {0.1: 0.0, 0.5: 0.5}, "tip": {0.1: -0.2, 0.5: 0.9}},
        "ap": {"route": {0.1: 0.5, 0.5: 0.25}, "tip": {0.1: 0.6, 0.5: 0.05}},
        "seconds": 12.5,
    }
    return SensitivityResult(**{**parts, **changes})


def small_bands() -> Bands:
    """Bands for every point of `small_result`."""
    low = {"route": {0.1: -0.1, 0.5: 0.4}, "tip": {0.1: -0.3, 0.5: 0.8}}
    high = {"route": {0.1: 0.1, 0.5: 0.6}, "tip": {0.1: -0.1, 0.5: 0.95}}
    return Bands(samples=200, seed=7, low=low, high=high)


@st.composite
def complete_results(draw: st.DrawFn) -> SensitivityResult:
    """Any complete result, with or without bands."""
    names = draw(st.lists(st.text("abc.01", min_size=1, max_size=8), unique=True, max_size=5))
    inside = st.floats(0, 1, exclude_min=True, exclude_max=True)
    ratios = sorted(draw(st.lists(inside, unique=True, min_size=1, max_size=4)))
    baseline = draw(st.floats(0.01, 1))
    ap = {name: {r: draw(st.floats(0, 1)) for r in ratios} for name in names}
    groups = {n: {r: (baseline - a) / baseline for r, a in row.items()} for n, row in ap.items()}
    bands = None
    if draw(st.booleans()):
        bands = Bands(draw(st.integers(1, 999)), draw(st.integers(0, 9)), groups, groups)
    return small_result(
        conditions=Conditions("coco_ap", baseline, draw(st.integers(1, 5000)), "fpgm", (608, 608)),
        request=Request(tuple(names), tuple(ratios), {name: 8 for name in names}),
        groups=groups,
        ap=ap,
        seconds=draw(st.floats(0, 1e6)),
        bands=bands,
    )
