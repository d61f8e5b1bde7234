"""ppdet's head of face detectors, with small initial weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from paddle.nn.initializer import Normal
from ppdet.core.workspace import serializable
from ppdet.modeling.cls_utils import _get_class_default_kwargs
from ppdet.modeling.heads.face_head import FaceHead as FaceHeadOfPpdet
from ppdet.modeling.layers import AnchorGeneratorSSD

INITIAL_DEVIATION = 0.01

_ANCHORS = _get_class_default_kwargs(AnchorGeneratorSSD)


@serializable
class FaceHead(FaceHeadOfPpdet):
    """Boxes and scores of every anchor by a 3x3 convolution; keys and layers are ppdet's.

    The weights start normally distributed with a deviation of 0.01, as Lin et al. 2017 (RetinaNet,
    arXiv 1708.02002), section 4.1, propose for a head without batch norm. BlazeFace's features are
    sums of many blocks. ppdet's initial weights map them to a loss of 40 to 60, and training needs
    hundreds of steps to reach 5.5, the loss of equal scores for boxes that are the anchors.

    Args:
        num_classes: Classes without the background.
        in_channels: Channels of the neck's outputs, finest first.
        anchor_generator: Anchors of every output.
        kernel_size: Side of the convolutions' kernels.
        padding: Of the convolutions, in pixels.
        conv_decay: Without effect, as in ppdet.
        loss: Maps boxes, scores, objects and anchors to a number.
    """

    def __init__(
        self,
        num_classes: int = 80,
        in_channels: Sequence[int] = (96, 96),
        anchor_generator: Any = _ANCHORS,
        kernel_size: int = 3,
        padding: int = 1,
        conv_decay: float = 0.0,
        loss: Any = "SSDLoss",
    ) -> None:
        super().__init__(
            num_classes, in_channels, anchor_generator, kernel_size, padding, conv_decay, loss
        )
        start = Normal(std=INITIAL_DEVIATION)
        for convolution in (*self.box_convs, *self.score_convs):
            start(convolution.weight)
