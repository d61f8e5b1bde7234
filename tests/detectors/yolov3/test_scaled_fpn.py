"""The YOLOv3 neck at another width."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from ppdet.modeling.necks.yolo_fpn import YOLOv3FPN
from ppdet.modeling.shape_spec import ShapeSpec

from slim_det.compress.tensors import tensor_shapes
from slim_det.core.errors import ConfigError
from slim_det.detectors.yolov3.scaled_fpn import ScaledYOLOv3FPN

IN_CHANNELS = (256, 512, 1024)


def features(channels: tuple[int, ...], side: int = 8) -> list[paddle.Tensor]:
    """Feature maps of a backbone, finest first, each half as large as the one before."""
    rng = np.random.default_rng(0)
    sides = [side // 2**i for i in range(len(channels))]
    return [
        paddle.to_tensor(rng.normal(size=(1, c, s, s)).astype("float32"))
        for c, s in zip(channels, sides)
    ]


def test_width_one_is_ppdets_neck() -> None:
    """The same names, shapes and outputs, so that weights may be exchanged."""
    scaled, original = ScaledYOLOv3FPN(IN_CHANNELS), YOLOv3FPN(list(IN_CHANNELS))
    assert tensor_shapes(scaled) == tensor_shapes(original)
    assert [s.channels for s in scaled.out_shape] == [s.channels for s in original.out_shape]
    scaled.set_state_dict(original.state_dict())
    scaled.eval()
    original.eval()
    with paddle.no_grad():
        for left, right in zip(scaled(features(IN_CHANNELS)), original(features(IN_CHANNELS))):
            assert np.array_equal(left.numpy(), right.numpy())


@pytest.mark.parametrize(("width", "out"), [(0.25, [256, 128, 64]), (0.5, [512, 256, 128])])
def test_every_layer_is_scaled(width: float, out: list[int]) -> None:
    neck = ScaledYOLOv3FPN((8, 16, 32), width)
    assert [shape.channels for shape in neck.out_shape] == out
    maps = neck(features((8, 16, 32)))
    assert [m.shape for m in maps] == [[1, c, s, s] for c, s in zip(out, (2, 4, 8))]
    shapes, full = tensor_shapes(neck), tensor_shapes(ScaledYOLOv3FPN((8, 16, 32)))
    assert shapes.keys() == full.keys()
    name = "yolo_block.1.conv_module.conv1.conv.weight"
    assert shapes[name] == tuple(int(width * n) if n > 3 else n for n in full[name])


@pytest.mark.parametrize("width", [0.3, 0.01, 0.0, -1.0])
def test_width_that_leaves_odd_channels(width: float) -> None:
    with pytest.raises(ConfigError, match=f"width {width} with 3 blocks is not valid.*by 16"):
        ScaledYOLOv3FPN(IN_CHANNELS, width)


def test_only_one_data_format() -> None:
    with pytest.raises(ConfigError, match="NCHW"):
        ScaledYOLOv3FPN(IN_CHANNELS, data_format="NHWC")


def test_channels_come_from_the_backbone() -> None:
    shapes = [ShapeSpec(channels=c) for c in (32, 64, 128)]
    assert ScaledYOLOv3FPN.from_config({}, shapes) == {"in_channels": [32, 64, 128]}
    assert ScaledYOLOv3FPN([32, 64]).out_shape[1].channels == 512
