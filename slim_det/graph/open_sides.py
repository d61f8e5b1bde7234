"""Sides of tensors that a program leaves open although they follow from the size of its image.

`reshape` can take sides from other tensors, such as height and width from `paddle.shape(x)`. Paddle
then writes -1 for them, and so do all operators behind it. TOOD's head is an example.
"""

from __future__ import annotations

import math
from typing import Any

from slim_det.graph.tracing import known_sizes


def close_sides(block: Any) -> None:
    """Set the open sides of a block's variables that follow from the known ones.

    Args:
        block: Paddle's block of a traced program, whose inputs have no open side.
    """
    changed: set[str] = set()
    for op in block.ops:
        if op.type == "reshape2" and op.input("ShapeTensor"):
            (output,) = op.output("Out")
            shape = _reshaped(block, op)
            if shape and shape != list(block.var(output).shape):
                block.var(output).desc.set_shape(shape)
                changed.add(output)
        elif changed.intersection(op.input_arg_names) and not op.has_attr("sub_block"):
            op.desc.infer_shape(block.desc)
            changed.update(op.output_arg_names)


def _reshaped(block: Any, op: Any) -> list[int]:
    """Shape that `reshape2` gives; [] if it is not known."""
    source = list(block.var(op.input("X")[0]).shape)
    sides = list(op.attr("shape"))
    for place, name in enumerate(op.input("ShapeTensor")):
        if sides[place] == -1:
            sides[place] = (known_sizes(block.var(name)) or [-1])[0]
    sides = [source[place] if side == 0 else side for place, side in enumerate(sides)]
    if min(source) < 0 or sides.count(-1) > 1:
        return []
    rest = math.prod(source) // max(-math.prod(sides), 1)
    return [rest if side == -1 else side for side in sides]
