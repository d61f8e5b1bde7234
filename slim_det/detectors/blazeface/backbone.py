"""The backbone of every BlazeFace detector: full, searched and Lite widths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import paddle
import paddle.nn as nn
from ppdet.core.workspace import serializable
from ppdet.modeling.shape_spec import ShapeSpec

from slim_det.core.errors import ConfigError
from slim_det.detectors.blazeface.blocks import (
    ConvNormAct,
    DoubleBlock,
    LiteBlock,
    Residual,
    SingleBlock,
    check_act,
)

Row = tuple[tuple[int, ...], int]
"""Widths of a block, and its stride."""

FEATURE_STRIDES = (8, 16)

BLAZE_FILTERS = ((24, 24), (24, 24), (24, 48, 2), (48, 48), (48, 48))
DOUBLE_BLAZE_FILTERS = (
    *((48, 24, 96, 2), (96, 24, 96), (96, 24, 96)),
    *((96, 24, 96, 2), (96, 24, 96), (96, 24, 96)),
)

LITE_STEM = 24
# Width and stride of each block.
LITE_BLOCKS = (
    *((24, 1), (28, 1), (32, 2), (36, 1), (42, 1), (48, 2)),
    *((56, 1), (64, 1), (72, 1), (80, 1), (88, 1), (96, 2)),
    *((96, 1), (96, 1), (96, 1), (96, 1)),
)


@serializable
class BlazeFaceNet(nn.Layer):
    """BlazeFace (Bazarevsky et al. 2019, arXiv 1907.05047) at any widths, two outputs.

    The outputs are the last tensor of stride 8 and the last of stride 16, found by stride: ppdet's
    ``BlazeNet`` takes the fourth from the end, which is the last of stride 8 at the default widths
    only. Layers have the same names as in ``BlazeNet``, so that its weights can be loaded.

    Args:
        blaze_filters: A single block each: [channels in, channels out] or [in, out, stride]. The
            first number is the width of the stem.
        double_blaze_filters: A double block each: [in, middle, out] or [in, middle, out, stride].
        use_5x5kernel: Depthwise convolutions of 5x5, or two of 3x3 for each.
        dense_second_conv: Whether the second 5x5 convolution of a double block mixes all its
            channels, as in PaddleDetection until 0.5, whose published sizes and latencies include
            it. It takes 41 % of the parameters and 27 % of the MACs of BlazeFace. In the paper
            and in PaddleDetection from 2.0 on it is depthwise, as by default here.
        lite_edition: The widths of BlazeFace-Lite, with blocks of one 3x3 depthwise and one
            pointwise convolution; of the other keys only ``conv_lr`` is used.
        act: Activation after the first pointwise convolution of a double block: relu, relu6,
            hard_swish or null. Every other is ReLU.
        conv_lr: Learning rate of the convolutions, as a share of the optimizer's. The published
            trainings take a tenth; a short one from random weights needs all of it.

    Raises:
        ConfigError: A list of widths does not fit the block before it, no tensor has stride 8 or
            16, or keys contradict each other.
    """

    def __init__(
        self,
        blaze_filters: Sequence[Sequence[int]] = BLAZE_FILTERS,
        double_blaze_filters: Sequence[Sequence[int]] = DOUBLE_BLAZE_FILTERS,
        use_5x5kernel: bool = True,
        dense_second_conv: bool = False,
        lite_edition: bool = False,
        act: str | None = "relu",
        conv_lr: float = 0.1,
    ) -> None:
        super().__init__()
        check_act(act)
        if dense_second_conv and (lite_edition or not use_5x5kernel):
            raise ConfigError(
                "BlazeFaceNet: dense_second_conv is of double blocks with 5x5 kernels; expected "
                "use_5x5kernel: true and lite_edition: false"
            )
        self._blocks: list[str] = []
        if lite_edition:
            self.conv1 = ConvNormAct(3, LITE_STEM, 5, stride=2)
            self._add_lite_blocks()
        else:
            singles = [_parsed("blaze_filters", row, 2) for row in blaze_filters]
            doubles = [_parsed("double_blaze_filters", row, 3) for row in double_blaze_filters]
            stem = (singles or doubles or [((LITE_STEM,), 1)])[0][0][0]
            self.conv1 = ConvNormAct(3, stem, 3, stride=2)
            width = self._add_blocks("blaze", SingleBlock, singles, stem, use_5x5kernel)
            options = (use_5x5kernel, dense_second_conv, act)
            self._add_blocks("double_blaze", DoubleBlock, doubles, width, *options)
        self.taps = self._last_of_each_stride()
        for parameter in self.parameters():
            if parameter.ndim == 4:
                parameter.optimize_attr["learning_rate"] = conv_lr

    def forward(self, inputs: dict[str, paddle.Tensor]) -> list[paddle.Tensor]:
        """Map ``image`` [B, 3, H, W] to features of strides 8 and 16."""
        feature = self.conv1(inputs["image"])
        features = {}
        for name in self._blocks:
            feature = getattr(self, name)(feature)
            features[name] = feature
        return [features[name] for name in self.taps]

    @property
    def out_shape(self) -> list[ShapeSpec]:
        """Channels and strides of the outputs, as ppdet's necks expect them."""
        return [
            ShapeSpec(channels=getattr(self, name).width, stride=stride)
            for name, stride in zip(self.taps, FEATURE_STRIDES)
        ]

    def _add(self, name: str, block: Residual) -> int:
        self.add_sublayer(name, block)
        self._blocks.append(name)
        return block.width

    def _add_lite_blocks(self) -> None:
        width_in = LITE_STEM
        for number, (width, stride) in enumerate(LITE_BLOCKS, start=2):
            name = f"conv{number}"
            width_in = self._add(name, LiteBlock(name, width_in, width, stride))

    def _add_blocks(
        self,
        prefix: str,
        kind: Callable[..., Residual],
        rows: list[Row],
        width_in: int,
        *options: Any,
    ) -> int:
        """Add a block for each row; returns the width of the last one."""
        for index, (widths, stride) in enumerate(rows):
            _check_joins(f"{prefix}_filters", index, width_in, widths, stride)
            name = f"{prefix}_{index}"
            width_in = self._add(name, kind(name, widths, stride, *options))
        return width_in

    def _last_of_each_stride(self) -> list[str]:
        """Names of the blocks whose outputs are the backbone's, finest first."""
        stride = 2
        last: dict[int, str] = {}
        for name in self._blocks:
            stride *= getattr(self, name).stride
            last[stride] = name
        if stride != FEATURE_STRIDES[-1] or FEATURE_STRIDES[0] not in last:
            raise ConfigError(
                f"BlazeFaceNet: the blocks end at stride {stride}; expected three of stride 2, "
                "so that outputs have strides 8 and 16"
            )
        return [last[stride] for stride in FEATURE_STRIDES]


def _parsed(key: str, row: Sequence[int], count: int) -> Row:
    """Read the widths of a block and its stride, which may be left out."""
    valid = isinstance(row, (list, tuple)) and len(row) in (count, count + 1)
    if not valid or any(type(value) is not int or value < 1 for value in row):
        raise ConfigError(
            f"BlazeFaceNet: {key}: {row} is not a list of {count} widths and a stride"
        )
    widths, stride = tuple(row[:count]), row[count] if len(row) > count else 1
    if stride not in (1, 2):
        raise ConfigError(f"BlazeFaceNet: {key}: {list(row)} has stride {stride}; expected 1 or 2")
    return widths, stride


def _check_joins(key: str, index: int, width_in: int, widths: tuple[int, ...], stride: int) -> None:
    """Check a block's input, and at stride 1 its output, to which the input is added."""
    if widths[0] != width_in:
        raise ConfigError(
            f"BlazeFaceNet: {key}: block {index} reads {widths[0]} channels, but {width_in} come "
            "from the block before"
        )
    if stride == 1 and widths[-1] != width_in:
        raise ConfigError(
            f"BlazeFaceNet: {key}: block {index} has stride 1 and maps {width_in} channels to "
            f"{widths[-1]}; expected as many, or stride 2"
        )
