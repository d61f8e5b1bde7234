"""The convolutions of a traced model, as a latency table describes them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

from pydantic import AfterValidator, Field, Strict

from slim_det.core.schema import Count
from slim_det.graph.op import Op
from slim_det.graph.operators import data_of, declared, fused_activations, result_of, weight_of
from slim_det.graph.trace import Trace

logger = logging.getLogger("slim_det")


def _known_activation(act: str) -> str:
    known = fused_activations()
    if act and act not in known:
        raise ValueError(f"{act!r} is not valid; expected one of {', '.join(known)}")
    return act


Size = Count
SizeOrZero = Annotated[int, Strict(), Field(ge=0, description="a whole number >= 0")]
Activation = Annotated[
    str, AfterValidator(_known_activation), Field(description="the name of an activation, or ''")
]


@dataclass(frozen=True)
class ConvShape:
    """Everything about a convolution that its latency depends on, batch 1.

    Attributes:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        height: Of the input, in pixels.
        width: Of the input, in pixels.
        kernel: Side of the square kernel.
        stride: In both directions.
        padding: On every side, in pixels.
        dilation: In both directions.
        groups: Groups of channels; ``in_channels`` if depthwise.
        act: Activation that runs inside it, Paddle's operator name; '' for none.
    """

    in_channels: Size
    out_channels: Size
    height: Size
    width: Size
    kernel: Size
    stride: Size = 1
    padding: SizeOrZero = 0
    dilation: Size = 1
    groups: Size = 1
    act: Activation = ""

    @property
    def depthwise(self) -> bool:
        """Whether every input channel is a group of its own, so that one width sets both."""
        return self.groups > 1 and self.groups == self.in_channels

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one image."""
        reach = self.dilation * (self.kernel - 1) + 1
        rows, columns = (
            (side + 2 * self.padding - reach) // self.stride + 1
            for side in (self.height, self.width)
        )
        weights = self.out_channels * (self.in_channels // self.groups) * self.kernel**2
        return rows * columns * weights

    def with_widths(self, in_channels: int, out_channels: int) -> ConvShape:
        """The same convolution with other widths, multiples of ``groups`` unless depthwise.

        A depthwise convolution keeps one group per input channel.
        """
        groups = in_channels if self.depthwise else self.groups
        return replace(self, in_channels=in_channels, out_channels=out_channels, groups=groups)

    def as_dict(self) -> dict[str, Any]:
        """The fields under their JSON keys."""
        return asdict(self)

    def __str__(self) -> str:
        """One phrase, e.g. ``3x3 conv 32->64 of 80x80, stride 2``."""
        kind = "depthwise conv" if self.depthwise else "conv"
        text = f"{self.kernel}x{self.kernel} {kind} {self.in_channels}->{self.out_channels} "
        text += f"of {self.height}x{self.width}"
        for name, usual in (("stride", 1), ("padding", self.kernel // 2), ("dilation", 1)):
            if getattr(self, name) != usual:
                text += f", {name} {getattr(self, name)}"
        if self.groups > 1 and not self.depthwise:
            text += f", {self.groups} groups"
        return text + (f", {self.act}" if self.act else "")


def conv_shapes(
    trace: Trace, parameter_shapes: Mapping[str, tuple[int, ...]] | None = None
) -> list[tuple[str, ConvShape]]:
    """List the convolutions of a traced model in execution order.

    Deformable and transposed convolutions are not listed, nor are those that are not square
    (a log line names them): to a latency table they are part of everything else.

    Args:
        trace: The model's operators.
        parameter_shapes: State-dict name -> shape of weights that a plan will make smaller; the
            list is then that of the pruned model.

    Returns:
        (state-dict name of the weight, shape) of each convolution; a weight that is used
        twice is listed twice.
    """
    found = []
    for op in trace.convolutions:
        variable = weight_of(op)
        name = trace.parameters.get(variable, variable)
        shape = _shape_of(op, trace, _activation(op, trace))
        if shape is None:
            logger.warning("%s: not a square convolution; not in the table", name)
            continue
        if parameter_shapes and name in parameter_shapes:
            shape = resized(shape, parameter_shapes[name])
        found.append((name, shape))
    return found


def _shape_of(op: Op, trace: Trace, act: str) -> ConvShape | None:
    """The shape of one operator; None if height and width are treated differently."""
    variable = trace.shapes[data_of(op)]
    weight = trace.shapes[weight_of(op)]
    if op.attrs.get("data_format") == "NHWC":
        _, height, width, channels = variable
    else:
        _, channels, height, width = variable
    padding = _padding(op, weight)
    pairs = [weight[2:], op.attrs["strides"], op.attrs.get("dilations", [1]), padding]
    if any(len(set(values)) != 1 for values in pairs):
        return None
    kernel, stride, dilation, pad = (int(values[0]) for values in pairs)
    groups = int(op.attrs.get("groups") or 1)
    return ConvShape(
        in_channels=int(channels),
        out_channels=int(weight[0]),
        height=int(height),
        width=int(width),
        kernel=kernel,
        stride=stride,
        padding=pad,
        dilation=dilation,
        groups=groups,
        act=act,
    )


def _padding(op: Op, weight: tuple[int, ...]) -> list[int]:
    """Padding of each side; empty if ``SAME`` makes it depend on the size of the image."""
    algorithm = op.attrs.get("padding_algorithm", "EXPLICIT")
    if algorithm == "VALID":
        return [0]
    if algorithm == "SAME":
        odd = all(side % 2 for side in weight[2:]) and set(op.attrs["strides"]) == {1}
        return [side // 2 * op.attrs["dilations"][0] for side in weight[2:]] if odd else []
    return list(op.attrs["paddings"])


def resized(shape: ConvShape, weight: tuple[int, ...]) -> ConvShape:
    """The convolution with a weight of the shape [out, in / groups, k, k]."""
    if shape.depthwise:
        multiplier = shape.out_channels // shape.in_channels
        return shape.with_widths(weight[0] // multiplier, weight[0])
    return shape.with_widths(weight[1] * shape.groups, weight[0])


def _activation(op: Op, trace: Trace) -> str:
    """The activation after the convolution and its batch norm, if nothing else reads their results.

    After a bias it runs by itself: the engine folds only batch norm.
    """
    variable = result_of(op)
    while True:
        readers = trace.readers(variable)
        if len(readers) != 1 or variable in trace.outputs:
            return ""
        reader = readers[0]
        if declared(reader).fused:
            return reader.type
        if reader.type != "batch_norm":
            return ""
        variable = result_of(reader)
