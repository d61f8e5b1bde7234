"""The plain backbone: shapes and counts by hand."""

import paddle
import pytest

from slim_det.core.errors import ConfigError
from slim_det.detectors.yolov3.plain_backbone import PlainBackbone


def test_features_have_strides_8_16_and_32():
    backbone = PlainBackbone(widths=[2, 3, 4, 5, 6])
    features = backbone({"image": paddle.zeros([2, 3, 64, 96])})
    assert [list(f.shape) for f in features] == [[2, 4, 8, 12], [2, 5, 4, 6], [2, 6, 2, 3]]
    assert [(s.channels, s.stride) for s in backbone.out_shape] == [(4, 8), (5, 16), (6, 32)]


def test_every_stage_but_the_first_has_two_convolutions():
    weights = [p for p in PlainBackbone(widths=[2, 3, 4, 5, 6]).parameters() if p.ndim == 4]
    assert [tuple(w.shape[:2]) for w in weights] == [
        (2, 3),
        (3, 2), (3, 3),
        (4, 3), (4, 4),
        (5, 4), (5, 5),
        (6, 5), (6, 6),
    ]  # fmt: skip


@pytest.mark.parametrize("widths", [[], [8, 8], [8, 8, 8, 8, 0]])
def test_wrong_widths_are_refused(widths):
    with pytest.raises(ConfigError, match="expected five numbers"):
        PlainBackbone(widths=widths)
