"""What inspection says of a model, and that it changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest

from slim_det.compress.prune.plan import plan_of
from slim_det.compress.prune.pruner import Pruner
from slim_det.graph.cost import detector_cost
from slim_det.graph.operators import OPERATORS
from slim_det.report.inspection import Inspection, inspect_model
from slim_det.training import session
from slim_det.training.config import load_config
from tests.support import build_detector, restored_config

SIZE_HW = (96, 96)


@pytest.fixture(scope="module")
def model(tiny: Path, ppdet_registered: None) -> Iterator[paddle.nn.Layer]:
    """The tiny detector with random weights; no test changes it."""
    with restored_config():
        yield session.build_model(load_config(tiny))


@pytest.fixture(scope="module")
def looked(model: paddle.nn.Layer) -> Inspection:
    """Its inspection without a pruner."""
    return inspect_model(model, SIZE_HW)


@pytest.fixture(scope="module")
def halved(model: paddle.nn.Layer) -> Inspection:
    """Its inspection with half of the first head block pruned."""
    return inspect_model(model, SIZE_HW, Pruner(pruned_ratios={"neck.yolo_block.0.*": 0.5}))


def by_name(inspection: Inspection) -> dict[str, Any]:
    return {group.name: group for group in inspection.groups}


def test_groups_hold_every_multiplication_once(looked: Inspection) -> None:
    """Each layer belongs to one group: their MACs and parameters add up to the totals."""
    assert looked.before == looked.after
    assert sum(group.macs_before for group in looked.groups) == looked.before.macs
    assert sum(group.params_before for group in looked.groups) == looked.before.params
    layers = [layer for group in looked.groups for layer in group.layers]
    assert len(layers) == len(set(layers))


def test_groups_that_stay_say_why(looked: Inspection) -> None:
    groups = by_name(looked)
    for i in range(3):
        output = groups[f"yolo_head.yolo_output.{i}"]
        assert not output.prunable and output.reason and output.channels == 27
    tip = groups["neck.yolo_block.0.tip"]
    assert tip.prunable and tip.reason == "" and (tip.channels, tip.kept) == (256, 256)


def test_cut_adds_up_to_the_totals_after(halved: Inspection, looked: Inspection) -> None:
    """The groups of the first block are halved; what reads them costs less as well."""
    groups = by_name(halved)
    assert sum(group.macs_after for group in halved.groups) == halved.after.macs
    assert sum(group.params_after for group in halved.groups) == halved.after.params
    cut = {name for name, group in groups.items() if group.ratio}
    assert len(cut) == 6 and all(groups[name].kept * 2 == groups[name].channels for name in cut)
    assert groups["neck.yolo_block.0.conv_module.conv1"].macs_after * 4 == (
        groups["neck.yolo_block.0.conv_module.conv1"].macs_before
    )
    output = groups["yolo_head.yolo_output.0"]
    assert output.kept == 27 and output.macs_after * 2 == output.macs_before
    assert halved.before == looked.before and halved.after.macs < halved.before.macs


def test_nothing_is_changed(model: paddle.nn.Layer, halved: Inspection) -> None:
    assert plan_of(model) is None
    assert detector_cost(model, SIZE_HW) == halved.before
    assert np.array_equal(model.neck.yolo_block[0].tip.conv.weight.shape, [256, 128, 3, 3])


def test_text_and_json(halved: Inspection, looked: Inspection) -> None:
    """Raw integers; a change is shown where there is one."""
    macs, left = halved.before.macs, halved.after.macs
    assert f"MACs: {macs} -> {left} ({left / macs - 1:+.2%})" in str(halved)
    assert f"MACs: {macs}\n" in str(looked)
    report = halved.as_dict()
    assert report["image_size_hw"] == [96, 96] and report["macs_deformable"]["before"] == 0
    assert report["before"]["macs"] == macs and report["after"]["macs"] == left
    assert {"name", "channels", "kept", "ratio", "prunable", "reason"} <= report["groups"][0].keys()


class Partly(paddle.nn.Layer):
    """1x1 convolutions; `split` cannot be pruned, as the code below holds the numbers 2 and 4."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.split = paddle.nn.Conv2D(3, 4, 1), paddle.nn.Conv2D(4, 6, 1)
        self.reader, self.head = paddle.nn.Conv2D(2, 5, 1), paddle.nn.Conv2D(5, 2, 1)
        self.alone = paddle.nn.Conv2D(3, 2, 1)
        self.depthwise = paddle.nn.Conv2D(4, 4, 1, groups=4)

    def forward(self, inputs: dict[str, paddle.Tensor]) -> Any:
        """Give three outputs."""
        left, right = paddle.split(self.split(self.first(inputs["image"])), [2, 4], axis=1)
        return self.head(self.reader(left)), self.alone(inputs["image"]), self.depthwise(right)


def test_share_of_multiplications_that_can_be_pruned() -> None:
    """By hand at 4x4 pixels: `first` and `reader` can be; `split` and `head` read what can be."""
    looked = inspect_model(Partly(), (4, 4))
    first, split, reader, head = 16 * 3 * 4, 16 * 4 * 6, 16 * 2 * 5, 16 * 5 * 2
    assert looked.before.macs == first + split + reader + head + 16 * 3 * 2 + 16 * 4 == 1056
    assert looked.macs_prunable == first + reader == 352
    assert looked.macs_reachable == first + split + reader + head == 896
    assert looked.as_dict()["macs_prunable"] == 352 and looked.as_dict()["macs_reachable"] == 896
    (line,) = [line for line in str(looked).splitlines() if "can be pruned" in line]
    assert line == (
        "groups that can be pruned: 33.3% of the MACs; with the layers that read them: 84.8%"
    )


def test_share_of_a_whole_detector_and_of_none(looked: Inspection, halved: Inspection) -> None:
    """Of YOLOv3 all but its outputs: 27 channels on 3x3, 6x6 and 12x12 pixels."""
    outputs = 27 * (256 * 3 * 3 + 128 * 6 * 6 + 64 * 12 * 12)
    for inspection in (looked, halved):  # what a pruner would do changes nothing
        assert inspection.macs_prunable == inspection.before.macs - outputs
        assert inspection.macs_reachable == inspection.before.macs
    none = inspect_model(OneLayer(), (4, 4))
    assert none.macs_prunable == none.macs_reachable == 0 and "can be pruned: 0.0%" in str(none)


class OneLayer(paddle.nn.Layer):
    """Its only convolution makes the output."""

    def __init__(self) -> None:
        super().__init__()
        self.only = paddle.nn.Conv2D(3, 2, 1)

    def forward(self, inputs: dict[str, paddle.Tensor]) -> paddle.Tensor:
        """Run it."""
        return self.only(inputs["image"])


def test_deformable_macs_follow_the_table(
    monkeypatch: pytest.MonkeyPatch, ppdet_registered: None
) -> None:
    """At 96x96 the three of the last stage read 3x3 pixels; 512 x 512 x 9 weights each."""
    model = build_detector("yolov3/yolov3_r50vd_dcn_270e_coco")
    before = inspect_model(model, SIZE_HW).as_dict()["macs_deformable"]["before"]
    assert before == 3 * 512 * 512 * 9 * 9
    kinds = [kind for kind, entry in OPERATORS.items() if entry.sampling]
    for kind in kinds:
        monkeypatch.setitem(OPERATORS, kind, replace(OPERATORS[kind], sampling=()))
    assert inspect_model(model, SIZE_HW).as_dict()["macs_deformable"]["before"] == 0
