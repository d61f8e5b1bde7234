"""Every operator type of PaddleDetection's detectors is in the table, or is left out for a reason.

`operator_types.json` lists the types of each family, and which of those that are not in the table
read channels that are followed. It was written, with PaddleDetection 2.6, Paddle 3.3.1, by

    python tools/compatibility/operators.py PADDLEDETECTION tests/graph/operator_types.json
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from slim_det.graph.operators import OPERATORS
from tests.support import ROOT

FILE = Path(__file__).with_name("operator_types.json")
FAMILIES: dict[str, dict[str, list[str]]] = json.loads(FILE.read_text(encoding="utf-8"))

AWAY_FROM_CHANNELS = {
    "makes numbers of its own, such as coordinates": "assign_value fill_constant meshgrid range",
    "arranges coordinates, boxes or scores": (
        "broadcast_tensors expand_v2 flip stack tensor_array_to_tensor tile"
    ),
    "makes boxes or scores of other boxes or scores": (
        "grid_sampler log matrix_nms pow reduce_min sum"
    ),
    "counts, picks or sorts boxes or points": (
        "arg_max distribute_fpn_proposals elementwise_floordiv elementwise_mod size top_k_v2 "
        "where where_index"
    ),
    "is a condition": "greater_than less_than logical_not",
}
"""Why types need no entry: no family has one of them where channels are still followed."""

AT_OUTPUTS = {
    "reads channels that are sides of boxes and scores of classes": (
        "generate_proposals_v2 multiclass_nms3 yolo_box"
    ),
    "has results for each class that depend on those of all others": "softmax",
    "picks the channel of a class": "gather_nd",
    "compares scores of classes with their neighbours": "equal",
    "holds a loop that makes boxes": "while",
}
"""Why types shall freeze what they read: that is what a detector gives, in every family."""


def _types(reasons: dict[str, str]) -> list[str]:
    return [kind for kinds in reasons.values() for kind in kinds.split()]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_type_has_an_entry_or_a_reason(family: str) -> None:
    known = {*OPERATORS, *_types(AWAY_FROM_CHANNELS), *_types(AT_OUTPUTS)}
    assert set(FAMILIES[family]["all"]) - known == set()


@pytest.mark.parametrize("family", FAMILIES)
def test_what_stops_channels_is_an_output(family: str) -> None:
    assert set(FAMILIES[family]["stopping"]) <= set(_types(AT_OUTPUTS))


def test_every_reason_is_needed_once() -> None:
    """It is for a type of some family that has no entry."""
    reasons = [*_types(AWAY_FROM_CHANNELS), *_types(AT_OUTPUTS)]
    assert len(reasons) == len(set(reasons))
    found = {kind for types in FAMILIES.values() for kind in types["all"]}
    assert set(reasons) == found - OPERATORS.keys()
    assert {k for types in FAMILIES.values() for k in types["stopping"]} == set(_types(AT_OUTPUTS))


@pytest.mark.slow
def test_the_file_is_what_the_families_consist_of(tmp_path: Path) -> None:
    checkout = os.environ.get("PADDLEDETECTION_DIR")
    if not checkout:
        pytest.skip("needs PADDLEDETECTION_DIR, a checkout of PaddleDetection 2.6")
    script, path = ROOT / "tools" / "compatibility" / "operators.py", tmp_path / "types.json"
    subprocess.run([sys.executable, script, Path(checkout).absolute(), path], check=True)
    assert json.loads(path.read_text(encoding="utf-8")) == FAMILIES
