"""Which widths of each convolution are measured."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import paddle

from slim_det.compress.prune.groups import ModelGroups, find_groups
from slim_det.core.errors import ConfigError
from slim_det.graph.trace import Trace
from slim_det.planning.profile.shapes import ConvShape, conv_shapes

DEFAULT_WIDTHS = (0.1, 0.25, 0.5, 0.75, 1.0)
ALIGN = 8


def check_widths(text: str) -> tuple[float, ...]:
    """Read ``--widths``: shares of each convolution's width, separated by commas.

    Returns:
        The shares in ascending order, the full width included.

    Raises:
        ConfigError: One is not a number above 0 and at most 1.
    """
    shares = {1.0}
    for part in text.split(","):
        try:
            share = float(part)
        except ValueError:
            share = -1.0
        if not 0.0 < share <= 1.0:
            raise ConfigError(
                f"--widths: '{part.strip()}' is not valid; expected shares above 0 and at most 1, "
                "separated by commas, e.g. 0.25,0.5,1.0"
            )
        shares.add(share)
    return tuple(sorted(shares))


def shapes_to_measure(
    model: paddle.nn.Layer, trace: Trace, shares: Sequence[float] = DEFAULT_WIDTHS
) -> list[ConvShape]:
    """Every convolution of a model at a grid of widths, each shape once, in the model's order.

    Input and output channels take the same shares independently, where pruning can change them; a
    depthwise convolution has only one width.

    Args:
        model: The model that was traced.
        trace: Its operators.
        shares: Shares of the full width, each above 0 and at most 1.
    """
    free = _prunable_axes(find_groups(model, trace))
    shapes: dict[ConvShape, None] = {}
    for name, shape in conv_shapes(trace):
        out_shares, in_shares = (shares if (name, axis) in free else (1.0,) for axis in (0, 1))
        if shape.depthwise:
            multiplier = shape.out_channels // shape.in_channels
            outs = widths(shape.out_channels, out_shares, multiplier)
            pairs = [(out // multiplier, out) for out in outs]
        else:
            outs = widths(shape.out_channels, out_shares, shape.groups)
            insides = widths(shape.in_channels, in_shares, shape.groups)
            pairs = list(product(insides, outs))
        shapes.update(dict.fromkeys(shape.with_widths(*pair) for pair in pairs))
    return list(shapes)


def widths(channels: int, shares: Sequence[float], unit: int = 1) -> list[int]:
    """The number of channels at each share, ascending, each once.

    Args:
        channels: The full width.
        shares: Shares of it.
        unit: What a width must be a multiple of.

    Returns:
        Multiples of ``unit``, at least ``unit`` itself. Layers of 32 or more channels get multiples
        of 8 as well: engines compute in blocks, and an odd width costs nearly as much as the next
        multiple.
    """
    step = unit if channels < 4 * ALIGN or ALIGN % unit else ALIGN
    rounded = (step * max(1, round(share * channels / step)) for share in shares)
    return sorted(
        {channels if share == 1 else min(channels, w) for share, w in zip(shares, rounded)}
    )


def _prunable_axes(groups: ModelGroups) -> set[tuple[str, int]]:
    """The (weight, axis) pairs whose size pruning can change."""
    units = {unit for g in groups.groups.values() if g.prunable for unit in g.units.tolist()}
    return {
        (axis.parameter, axis.axis)
        for axis in groups.axes
        if not units.isdisjoint(axis.ids.tolist())
    }
