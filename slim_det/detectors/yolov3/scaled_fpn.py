"""ppdet's YOLOv3 neck at another width, for detectors that train on a CPU."""

from __future__ import annotations

import paddle
import paddle.nn as nn
import paddle.nn.functional as F
from ppdet.core.workspace import serializable
from ppdet.modeling.backbones.darknet import ConvBNLayer
from ppdet.modeling.necks.yolo_fpn import YoloDetBlock
from ppdet.modeling.shape_spec import ShapeSpec

from slim_det.core.errors import ConfigError

FULL_WIDTH = 512


@serializable
class ScaledYOLOv3FPN(nn.Layer):
    """Three YOLO blocks joined by upsampling, every channel count multiplied by ``width``.

    At width 1 it is ppdet's ``YOLOv3FPN``, with the same layer names at any width (Redmon and
    Farhadi 2018, arXiv 1804.02767).

    Args:
        in_channels: Channels of the backbone's outputs, finest first.
        width: Multiplier; every layer must keep an even number of channels.
        norm_type: ``bn`` or ``sync_bn``.
        freeze_norm: Whether batch norm is frozen.
        data_format: Only ``NCHW``.

    Raises:
        ConfigError: The width leaves a layer with an odd number of channels.
    """

    __shared__ = ["norm_type", "data_format"]

    def __init__(
        self,
        in_channels: tuple[int, ...] = (256, 512, 1024),
        width: float = 1.0,
        norm_type: str = "bn",
        freeze_norm: bool = False,
        data_format: str = "NCHW",
    ) -> None:
        super().__init__()
        self.in_channels = list(in_channels)
        self.channels = [FULL_WIDTH * width / 2**i for i in range(len(in_channels))]
        if data_format != "NCHW" or any(c < 4 or c % 4 for c in self.channels):
            raise ConfigError(
                f"ScaledYOLOv3FPN: width {width} with {len(in_channels)} blocks is not valid; "
                f"expected width * {FULL_WIDTH} divisible by "
                f"{4 * 2 ** (len(in_channels) - 1)}, NCHW"
            )
        self.yolo_block = nn.LayerList()
        self.yolo_transition = nn.LayerList()
        carried = 0
        for i, source in enumerate(reversed(self.in_channels)):
            channel = int(self.channels[i])
            self.yolo_block.append(YoloDetBlock(source + carried, channel, norm_type, freeze_norm))
            if i + 1 < len(self.in_channels):
                carried = channel // 2
                self.yolo_transition.append(
                    ConvBNLayer(channel, carried, filter_size=1, norm_type=norm_type)
                )

    def forward(self, feats: list[paddle.Tensor], for_mot: bool = False) -> list[paddle.Tensor]:
        """Map backbone features (finest first) to head features (coarsest first)."""
        outputs = []
        route = None
        for i, feature in enumerate(reversed(feats)):
            if route is not None:
                route = self.yolo_transition[i - 1](route)
                feature = paddle.concat([F.interpolate(route, scale_factor=2.0), feature], axis=1)
            route, tip = self.yolo_block[i](feature)
            outputs.append(tip)
        return outputs

    @classmethod
    def from_config(cls, cfg: dict, input_shape: list[ShapeSpec]) -> dict:
        """Take the channel counts from the backbone (ppdet's convention)."""
        return {"in_channels": [shape.channels for shape in input_shape]}

    @property
    def out_shape(self) -> list[ShapeSpec]:
        """Channels of each output, as ppdet's heads expect them."""
        return [ShapeSpec(channels=int(channel) * 2) for channel in self.channels]
