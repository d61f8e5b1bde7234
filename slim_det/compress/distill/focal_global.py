"""Focal and global distillation of feature maps (Yang et al., CVPR 2022, arXiv 2111.11837)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import paddle
from paddle import Tensor, nn
from paddle.nn import functional

from slim_det.compress.distill.loss import Options, pair
from slim_det.core.errors import ConfigError


class GlobalContext(nn.Layer):
    """Adds to each place of a map what the whole map says (GcBlock, Cao et al., arXiv 1904.11492).

    The last convolution starts at zero, so the map is unchanged at first.

    Args:
        channels: Of the map [N, channels, H, W].
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(1, channels // 2)
        self.mask = nn.Conv2D(channels, 1, 1)
        self.transform = nn.Sequential(
            nn.Conv2D(channels, inner, 1),
            nn.LayerNorm([inner, 1, 1]),
            nn.ReLU(),
            nn.Conv2D(inner, channels, 1, weight_attr=nn.initializer.Constant(0.0)),
        )

    def forward(self, feature: Tensor) -> Tensor:
        """Map [N, channels, H, W] -> the same shape."""
        share = functional.softmax(self.mask(feature).flatten(2), axis=-1)
        context = paddle.matmul(feature.flatten(2), share, transpose_y=True).unsqueeze(-1)
        return feature + self.transform(context)


class FocalGlobalContext(nn.Layer):
    """The two global contexts that the loss learns: the student's and the teacher's.

    Args:
        channels: Of both maps.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.student, self.teacher = GlobalContext(channels), GlobalContext(channels)


def fgd(student: Tensor, teacher: Tensor, options: Options) -> Tensor:
    """Focal and global distillation of maps [N, C, H, W].

    With the attention of places ``A_S = H W softmax(mean_c |F| / T)``, that of channels
    ``A_C = C softmax(mean_hw |F| / T)``, both of the teacher, and D the squared difference::

        alpha sum_objects(D A_S A_C / area) + beta sum_background(D A_S A_C) / background places
        + gamma (sum |A_S - A_S of the student| + sum |A_C - A_C of the student|)
        + lambda sum (R_t(teacher) - R_s(student))^2

    divided by N, where R are learned global contexts. The area is in places, that of the smallest
    object that covers a place. An image without objects is all background. T and the factors are
    those of the paper for detectors with one stage, as PaddleDetection has them.
    """
    s, t = pair("fgd", student, teacher, axes="N, C, H, W")
    if not isinstance(options.context, FocalGlobalContext):
        raise ConfigError("distillation loss 'fgd' needs its global contexts")
    objects, background = _place_weights(options.boxes, *(int(x) for x in s.shape[2:]))
    if len(objects) != s.shape[0]:
        raise ConfigError(
            f"distillation loss 'fgd': {len(objects)} images with boxes for {s.shape[0]} maps"
        )
    of_places, of_channels = _attentions(t, options.temperature)
    ours = _attentions(s, options.temperature)
    difference = ((s - t).square() * of_places * of_channels).sum(axis=1)
    factors = options.factors
    value = factors["alpha"] * (difference * paddle.to_tensor(objects)).sum()
    value += factors["beta"] * (difference * paddle.to_tensor(background)).sum()
    attention = (of_places - ours[0]).abs().sum() + (of_channels - ours[1]).abs().sum()
    value += factors["gamma"] * attention
    relation = (options.context.teacher(t) - options.context.student(s)).square().sum()
    return (value + factors["lambda"] * relation) / s.shape[0]


def _attentions(feature: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Attention of places [N, 1, H, W] and of channels [N, C, 1, 1], each with the mean 1."""
    batch, channels, height, width = feature.shape
    strength = feature.abs()
    places = functional.softmax(strength.mean(axis=1).flatten(1) / temperature, axis=1)
    heights = functional.softmax(strength.mean(axis=[2, 3]) / temperature, axis=1)
    return (
        places.reshape([batch, 1, height, width]) * (height * width),
        heights.reshape([batch, channels, 1, 1]) * channels,
    )


def _place_weights(
    boxes: Sequence[np.ndarray], height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Weights of the places of objects and of background, each float32 [N, H, W].

    Args:
        boxes: See `Options`.
        height: Rows of the map.
        width: Columns of the map.
    """
    objects = np.zeros((len(boxes), height, width), np.float32)
    background = np.zeros_like(objects)
    for image, found in enumerate(boxes):
        for x1, y1, x2, y2 in found:
            rows = _covered(y1, y2, height)
            columns = _covered(x1, x2, width)
            area = (rows.stop - rows.start) * (columns.stop - columns.start)
            if area:
                place = objects[image, rows, columns]
                np.maximum(place, np.float32(1.0 / area), out=place)
        empty = objects[image] == 0
        background[image][empty] = 1.0 / max(1, int(empty.sum()))
    return objects, background


def _covered(low: float, high: float, count: int) -> slice:
    """The cells that an interval of 0 to 1 touches, of ``count``."""
    first = min(max(math.floor(low * count), 0), count)
    return slice(first, max(first, min(math.ceil(high * count), count)))
