"""A backbone of plain convolutions, for detectors that train from random weights on a CPU."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import paddle
import paddle.nn as nn
from ppdet.core.workspace import serializable
from ppdet.modeling.backbones.darknet import ConvBNLayer
from ppdet.modeling.shape_spec import ShapeSpec

from slim_det.core.errors import ConfigError

DETECTION_STRIDES = (8, 16, 32)


@serializable
class PlainBackbone(nn.Layer):
    """Five stages, each a convolution of stride 2 and, but for the first, one of stride 1.

    Args:
        widths: Channels of the five stages, strides 2, 4, 8, 16 and 32.
        norm_type: ``bn`` or ``sync_bn``.

    Raises:
        ConfigError: There are not five widths.
    """

    __shared__ = ["norm_type"]

    def __init__(
        self, widths: Sequence[int] = (16, 32, 64, 128, 256), norm_type: str = "bn"
    ) -> None:
        super().__init__()
        if len(widths) != 5 or min(widths) < 1:
            raise ConfigError(f"PlainBackbone: widths {list(widths)}; expected five numbers >= 1")
        self.widths = list(widths)
        self.stages = nn.LayerList()
        conv = functools.partial(ConvBNLayer, filter_size=3, padding=1, norm_type=norm_type)
        for index, (width_in, width) in enumerate(zip([3, *self.widths], self.widths)):
            stage = [conv(width_in, width, stride=2)]
            if index:
                stage.append(conv(width, width, stride=1))
            self.stages.append(nn.Sequential(*stage))

    def forward(self, inputs: dict[str, paddle.Tensor]) -> list[paddle.Tensor]:
        """Map ``image`` [B, 3, H, W] to features of strides 8, 16 and 32."""
        feature = inputs["image"]
        features = []
        for stage in self.stages:
            feature = stage(feature)
            features.append(feature)
        return features[-len(DETECTION_STRIDES) :]

    @property
    def out_shape(self) -> list[ShapeSpec]:
        """Channels and strides of the outputs, as ppdet's necks expect them."""
        return [
            ShapeSpec(channels=width, stride=stride)
            for width, stride in zip(self.widths[-len(DETECTION_STRIDES) :], DETECTION_STRIDES)
        ]
