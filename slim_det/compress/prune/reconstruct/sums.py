"""Residual sums: the last layer that adds to a sum makes good what the other side gets wrong.

If each branch of a residual block only learned its own former output, the errors of the shortcut
would pass through all blocks and add up. The last branch learns the difference between the former
sum and what the other side gives now (He, Zhang, Sun 2017, arXiv 1707.06168, section 3.3).
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass

import numpy as np

from slim_det.compress.prune.reconstruct.layers import LinearLayer
from slim_det.graph.folding import affine_map
from slim_det.graph.linear_rules import Convolution
from slim_det.graph.op import Op
from slim_det.graph.operators import result_of
from slim_det.graph.program import DeployProgram

_SMALLEST_FACTOR = 1e-3
"""Channels that batch norm multiplies by less, relative to the largest, hardly reach the sum."""


@dataclass(frozen=True)
class Sum:
    """An addition behind a convolution, with bias, batch norm and ReLU between them at most.

    Attributes:
        total: Variable of the sum.
        other: Variable that the convolution's branch is added to.
        norm: Index of the batch norm between them; None without one.
        relu: Whether there is a ReLU between them.
    """

    total: str
    other: str
    norm: int | None
    relu: bool


def sums_behind(
    program: DeployProgram, layers: Sequence[LinearLayer], changed: Set[str]
) -> dict[str, Sum]:
    """Weight name -> sum, for each layer that is repaired last of all that its sum depends on.

    Args:
        program: The unpruned program.
        layers: In the order in which they are repaired.
        changed: Variables that a cut changes.
    """
    found = {}
    for place, layer in enumerate(layers):
        one = _sum_behind(program, layer)
        if one is None or one.other not in changed:
            continue
        waiting = [result_of(program.ops[use]) for rest in layers[place:] for use in rest.uses]
        later = {name for op in program.downstream(waiting) for name in op.output_arg_names}
        if one.other not in later.union(waiting):
            found[layer.weight] = one
    return found


def wanted_outputs(
    program: DeployProgram,
    layer: LinearLayer,
    behind: Sum,
    total: np.ndarray,
    other: np.ndarray,
    former: np.ndarray,
) -> np.ndarray:
    """What a layer should give so that its sum is as before.

    Args:
        program: The cut program.
        layer: A layer with a sum.
        behind: The sum.
        total: What the sum was in the unpruned model, [P, C].
        other: What the other side is now, [P, C].
        former: What the layer gave in the unpruned model, for channels that batch norm all but
            removes, [P, C].
    """
    bias = _bias(program, program.ops[layer.uses[0]])
    factor, shift = _affine(program, behind.norm)
    shift = shift + factor * bias
    wanted = total.astype(np.float64) - other
    if behind.relu:
        # Any negative number gives the zero that is wanted there; the former one is the nearest.
        wanted = np.where(wanted > 0.0, wanted, np.minimum(former * factor + shift, 0.0))
    weak = np.abs(factor) <= _SMALLEST_FACTOR * np.abs(factor).max()
    wanted = (wanted - shift) / np.where(weak, 1.0, factor)
    found: np.ndarray = np.where(weak, former, wanted).astype(np.float32)
    return found


def at_positions(values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Values of one image [C, H, W] at some positions, [P, C]."""
    return values.reshape(len(values), -1)[:, chosen].T


def _sum_behind(program: DeployProgram, layer: LinearLayer) -> Sum | None:
    if len(layer.uses) != 1 or not isinstance(layer.rule, Convolution):
        return None
    op = program.ops[layer.uses[0]]
    if op.attrs.get("data_format") == "NHWC":
        return None
    name, norm = program.with_bias(op), None
    reader = _only_reader(program, name)
    if reader is not None and "batch_norm" in reader.type:
        norm, name = program.ops.index(reader), result_of(reader)
        reader = _only_reader(program, name)
    relu = reader is not None and reader.type == "relu"
    if reader is not None and relu:
        name = result_of(reader)
        reader = _only_reader(program, name)
    if reader is None or reader.type != "elementwise_add":
        return None
    left, right = reader.input("X"), reader.input("Y")
    other = right if left == name else left
    shapes = {tuple(program.block.var(one).shape) for one in (left, right)}
    if other == name or len(shapes) > 1 or program.is_parameter(other):
        return None
    return Sum(result_of(reader), other, norm, relu)


def _bias(program: DeployProgram, op: Op) -> np.ndarray:
    """The bias of a convolution, [C] or [1]."""
    name = program.bias_parameter(op)
    return program.value(name).ravel().astype(np.float64) if name else np.zeros(1)


def _affine(program: DeployProgram, norm: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Factor and shift of a batch norm in evaluation, [C] or [1]."""
    if norm is None:
        return np.ones(1), np.zeros(1)
    return affine_map(program, program.ops[norm])


def _only_reader(program: DeployProgram, name: str) -> Op | None:
    readers = program.readers(name)
    return readers[0] if len(readers) == 1 else None
