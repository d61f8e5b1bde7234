"""The residual blocks that BlazeFace detectors are stacked from."""

from __future__ import annotations

from typing import Any

import paddle
import paddle.nn as nn
import paddle.nn.functional as F
from paddle import ParamAttr
from paddle.nn.initializer import KaimingNormal

from slim_det.core.errors import ConfigError, nearest

ACTIVATIONS = {"relu": F.relu, "relu6": F.relu6, "hard_swish": F.hardswish}


class ConvNormAct(nn.Layer):
    """A convolution without bias that keeps the size (or halves it), batch norm, activation.

    The weight starts as He et al. 2015 (arXiv 1502.01852) propose.

    Args:
        width_in: Channels of the input.
        width: Channels of the output.
        kernel: Side of the odd square kernel, in pixels.
        stride: 1 or 2.
        groups: ``width`` for a depthwise convolution.
        act: A name of `ACTIVATIONS`, or None.
    """

    def __init__(
        self,
        width_in: int,
        width: int,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        act: str | None = "relu",
    ) -> None:
        super().__init__()
        self._conv = nn.Conv2D(
            width_in,
            width,
            kernel,
            stride=stride,
            padding=kernel // 2,
            groups=groups,
            weight_attr=ParamAttr(initializer=KaimingNormal()),
            bias_attr=False,
        )
        self._batch_norm = nn.BatchNorm2D(width)
        self._act = act

    def forward(self, feature: paddle.Tensor) -> paddle.Tensor:
        """Map [B, width_in, H, W] to [B, width, H / stride, W / stride], rounded up."""
        feature = self._batch_norm(self._conv(feature))
        return feature if self._act is None else ACTIVATIONS[self._act](feature)


class Residual(nn.Layer):
    """``relu(branch(x) + shortcut(x))``, with a branch that subclasses define.

    The shortcut is the input itself, or its 2x2 maximum at stride 2, followed by a 1x1 convolution
    where channels or stride change.

    Args:
        name: Prefix of the layers that ppdet's ``BlazeNet`` names after the block.
        width_in: Channels of the input.
        width: Channels of the output.
        stride: 1 or 2.
    """

    def __init__(self, name: str, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.width = width
        self.stride = stride
        self._branch: list[str] = []
        self._shortcut: list[str] = []
        if stride == 2:
            pool = nn.MaxPool2D(kernel_size=2, stride=2, ceil_mode=True)
            self._append(self._shortcut, f"{name}_shortcut_pool", pool)
        if stride == 2 or width_in != width:
            projection = ConvNormAct(width_in, width, 1)
            self._append(self._shortcut, f"{name}_shortcut_conv", projection)

    def forward(self, feature: paddle.Tensor) -> paddle.Tensor:
        """Map [B, width_in, H, W] to [B, width, H / stride, W / stride], rounded up."""
        branch = shortcut = feature
        for layer in self._branch:
            branch = getattr(self, layer)(branch)
        for layer in self._shortcut:
            shortcut = getattr(self, layer)(shortcut)
        return F.relu(branch + shortcut)

    def _append(self, path: list[str], name: str, layer: nn.Layer) -> None:
        self.add_sublayer(name, layer)
        path.append(name)

    def _append_depthwise(self, name: str, width: int, stride: int, use_5x5kernel: bool) -> None:
        """One 5x5 depthwise convolution or two of 3x3, which see as many pixels."""
        if use_5x5kernel:
            self._append(self._branch, name, ConvNormAct(width, width, 5, stride, groups=width))
            return
        for number, step in ((1, 1), (2, stride)):
            layer = ConvNormAct(width, width, 3, step, groups=width)
            self._append(self._branch, f"{name}_{number}", layer)


class SingleBlock(Residual):
    """Depthwise, then pointwise without an activation (Bazarevsky et al. 2019, figure 1 left).

    Args:
        name: Prefix of the layers' names.
        widths: Channels of the input and of the output, equal at stride 1.
        stride: 1 or 2.
        use_5x5kernel: Whether the depthwise convolution is one of 5x5, or two of 3x3.
    """

    def __init__(
        self, name: str, widths: tuple[int, int], stride: int, use_5x5kernel: bool
    ) -> None:
        width_in, width = widths
        super().__init__(name, width_in, width, stride)
        self._append_depthwise(f"{name}1_dw", width_in, stride, use_5x5kernel)
        self._append(self._branch, "conv_pw", ConvNormAct(width_in, width, 1, act=None))


class DoubleBlock(Residual):
    """Two pairs of depthwise and pointwise around a narrow middle (figure 1 right).

    Args:
        name: Prefix of the layers' names.
        widths: Channels of the input, of the middle and of the output.
        stride: 1 or 2.
        use_5x5kernel: Whether a depthwise convolution is one of 5x5, or two of 3x3.
        dense_second_conv: Whether the second 5x5 convolution mixes channels.
        act: Activation after the first pointwise convolution, a name of `ACTIVATIONS` or None.
    """

    def __init__(
        self,
        name: str,
        widths: tuple[int, int, int],
        stride: int,
        use_5x5kernel: bool,
        dense_second_conv: bool,
        act: str | None,
    ) -> None:
        width_in, middle, width = widths
        super().__init__(name, width_in, width, stride)
        self._append_depthwise(f"{name}1_dw", width_in, stride, use_5x5kernel)
        self._append(self._branch, "conv_pw", ConvNormAct(width_in, middle, 1, act=act))
        if dense_second_conv:
            self._append(self._branch, f"{name}2_dw", ConvNormAct(middle, middle, 5))
        else:
            self._append_depthwise(f"{name}2_dw", middle, 1, use_5x5kernel)
        self._append(self._branch, "conv_pw2", ConvNormAct(middle, width, 1))


class LiteBlock(Residual):
    """Depthwise 3x3, then pointwise with an activation, of BlazeFace-Lite."""

    def __init__(self, name: str, width_in: int, width: int, stride: int) -> None:
        super().__init__(name, width_in, width, stride)
        depthwise = ConvNormAct(width_in, width_in, 3, stride, groups=width_in)
        self._append(self._branch, f"{name}_dw", depthwise)
        self._append(self._branch, f"{name}_sep", ConvNormAct(width_in, width, 1))


def check_act(act: Any) -> None:
    """Raise a `ConfigError` unless an activation is None or a name of `ACTIVATIONS`."""
    if act is not None and act not in ACTIVATIONS:
        raise ConfigError(
            f"BlazeFaceNet: act {act!r} is unknown; expected {', '.join(ACTIVATIONS)} or null"
            f"{nearest(str(act), ACTIVATIONS)}"
        )
