"""BlazeFace's backbone: taps by stride, ppdet's numbers, and the published sizes of the family."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
import pytest
from ppdet.modeling.backbones.blazenet import BlazeNet

from slim_det.core.errors import ConfigError
from slim_det.detectors.blazeface.backbone import BlazeFaceNet
from slim_det.graph.cost import detector_cost
from tests.support import assert_same_sums, build_detector

NAS: dict[str, Any] = {
    "blaze_filters": [[12, 12], [12, 12, 2], [12, 12]],
    "double_blaze_filters": [[12, 16, 24, 2], [24, 12, 24], [24, 16, 72, 2], [72, 12, 72]],
}
NAS_V2: dict[str, Any] = {
    "blaze_filters": [[12, 12], [12, 12, 2], [12, 12]],
    "double_blaze_filters": [[12, 16, 32, 2], [32, 32, 32], [32, 16, 72, 2], [72, 24, 72]],
}
FAMILY: dict[str, tuple[dict[str, Any], list[int]]] = {
    "full": ({}, [96, 96]),
    "full-3x3": ({"use_5x5kernel": False}, [96, 96]),
    "dense": ({"dense_second_conv": True}, [96, 96]),
    "lite": ({"lite_edition": True}, [88, 96]),
    "nas": (NAS, [24, 72]),
    "nas-v2": (NAS_V2, [32, 72]),
}

# Parameters (running statistics included) and 10^9 MACs at 640 of backbone, neck and head. Dense,
# and Lite: as PaddleDetection had them until 0.5.
COUNTS = {
    "dense": ("blazeface_dense_widerface", {}, 202416, 1.220),
    "lite": ("blazeface_lite_widerface", {}, 176226, 1.183),
    "nas-dense": ("blazeface_nas_widerface", {"dense_second_conv": True}, 60012, 0.266),
    "nas-v2-dense": ("blazeface_nas_v2_widerface", {"dense_second_conv": True}, 98620, 0.446),
    "depthwise": ("blazeface_widerface", {}, 119616, 0.889),
    "nas": ("blazeface_nas_widerface", {}, 41412, 0.191),
    "nas-v2": ("blazeface_nas_v2_widerface", {}, 48020, 0.217),
    "fpn-ssh": ("blazeface_fpn_ssh_widerface", {}, 163680, 1.135),
}


@pytest.fixture(params=FAMILY.values(), ids=FAMILY)
def member(request: pytest.FixtureRequest) -> tuple[BlazeFaceNet, list[int]]:
    """A backbone, and the channels of its two outputs."""
    keys, channels = request.param
    paddle.seed(0)
    return BlazeFaceNet(**keys), channels


def image(height: int, width: int) -> dict[str, paddle.Tensor]:
    values = np.random.default_rng(0).normal(size=(1, 3, height, width))
    return {"image": paddle.to_tensor(values.astype("float32"))}


def test_outputs_have_strides_8_and_16(member):
    backbone, channels = member
    features = backbone(image(64, 96))
    assert [list(f.shape) for f in features] == [
        [1, channels[0], 8, 12],
        [1, channels[1], 4, 6],
    ]
    assert [(s.channels, s.stride) for s in backbone.out_shape] == [
        (channels[0], 8),
        (channels[1], 16),
    ]


def test_odd_sizes_are_rounded_up(member):
    """Images are evaluated at their own size: 67 -> 34 -> 17 -> 9 -> 5."""
    backbone, _ = member
    features = backbone(image(67, 35))
    assert [list(f.shape[2:]) for f in features] == [[9, 5], [5, 3]]


def test_the_first_output_is_the_last_of_its_stride(member):
    """A change of the block behind it reaches the second output only."""
    backbone, _ = member
    backbone.eval()
    before = backbone(image(32, 32))
    blocks = backbone._blocks
    behind = blocks[blocks.index(backbone.taps[0]) + 1]
    assert getattr(backbone, behind).stride == 2
    norms = [layer for layer in getattr(backbone, behind).sublayers() if "Norm" in str(type(layer))]
    norms[-1].bias.set_value(norms[-1].bias + 1)
    after = backbone(image(32, 32))
    assert (after[0] - before[0]).abs().max() == 0
    assert (after[1] - before[1]).abs().max() > 0


def test_gradients_reach_every_parameter(member):
    backbone, _ = member
    backbone.train()
    features = backbone(image(64, 64))
    sum((feature**2).mean() for feature in features).backward()
    trained = [(name, p) for name, p in backbone.named_parameters() if not p.stop_gradient]
    assert len(trained) > 50
    assert [name for name, p in trained if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_convolutions_learn_at_a_tenth_and_have_no_bias(member):
    backbone, _ = member
    rates = {
        name.rpartition(".")[2] + str(p.ndim): p.optimize_attr["learning_rate"]
        for name, p in backbone.named_parameters()
    }
    assert rates == {"weight4": 0.1, "weight1": 1.0, "bias1": 1.0, "_mean1": 1.0, "_variance1": 1.0}


@pytest.mark.parametrize("act", ["relu", "relu6", "hard_swish", None])
@pytest.mark.parametrize("use_5x5kernel", [True, False])
def test_equals_ppdet_where_its_taps_are_right(act: str | None, use_5x5kernel: bool):
    """The default widths: same names, same numbers in training and in evaluation."""
    paddle.seed(1)
    theirs = BlazeNet(act=act, use_5x5kernel=use_5x5kernel)
    ours = BlazeFaceNet(act=act, use_5x5kernel=use_5x5kernel)
    missing, unexpected = ours.set_state_dict(theirs.state_dict())
    assert not missing and not unexpected
    for mode in ("train", "eval"):
        getattr(theirs, mode)()
        getattr(ours, mode)()
        for expected, found in zip(theirs(image(64, 96)), ours(image(64, 96))):
            assert expected.numpy().std() > 0
            assert_same_sums(found.numpy(), expected.numpy())


def test_ppdet_taps_the_wrong_block_at_searched_widths():
    """What makes this class necessary: the fourth from the end is the first of stride 8."""
    theirs = BlazeNet(act="relu", **NAS)
    ours = BlazeFaceNet(**NAS)
    ours.set_state_dict(theirs.state_dict())
    theirs.eval()
    ours.eval()
    first, last = theirs(image(64, 64))
    found = ours(image(64, 64))
    assert_same_sums(found[1].numpy(), last.numpy())
    assert np.abs(found[0].numpy() - first.numpy()).max() > 0.01


@pytest.mark.parametrize("row", COUNTS.values(), ids=COUNTS)
def test_published_counts(ppdet_registered: None, row: tuple[str, dict[str, Any], int, float]):
    config, changes, params, giga_macs = row
    model = build_detector(f"blazeface/{config}", BlazeFaceNet=changes)
    cost = detector_cost(model, (640, 640))
    assert (cost.params, round(cost.macs / 1e9, 3)) == (params, giga_macs)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"blaze_filters": [], "double_blaze_filters": []}, "end at stride 2"),
        ({"double_blaze_filters": [[48, 24, 96, 2]]}, "end at stride 8"),
        ({"double_blaze_filters": [[48, 24, 8, 2], [8, 8, 8, 2], [8, 8, 8, 2]]}, "at stride 32"),
        ({"blaze_filters": [[24, 24], [12, 48, 2]]}, "block 1 reads 12 channels, but 24 come"),
        ({"blaze_filters": [[24, 48]]}, "expected as many, or stride 2"),
        ({"blaze_filters": [[24, 24, 24, 24]]}, "is not a list of 2 widths and a stride"),
        ({"blaze_filters": [[24, 24, 3]]}, "has stride 3; expected 1 or 2"),
        ({"double_blaze_filters": [[48, 0, 96, 2]]}, "is not a list of 3 widths and a stride"),
        ({"act": "hardswish"}, "act 'hardswish' is unknown.*hard_swish"),
        ({"dense_second_conv": True, "use_5x5kernel": False}, "expected use_5x5kernel: true"),
        ({"dense_second_conv": True, "lite_edition": True}, "lite_edition: false"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(keys: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        BlazeFaceNet(**keys)
