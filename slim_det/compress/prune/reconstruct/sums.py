"""Residual sums: the last layer that adds to a sum makes good what the other side gets wrong.

If each branch of a residual block only learned its own former output, the errors of the shortcut
would pass through all blocks and add up. The last branch learns the difference between the former
sum and what the other side gives now (He, Zhang, Sun 2017, arXiv 1707.06168, section 3.3).
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, replace

import numpy as np

from slim_det.compress.prune.reconstruct.branch import (
    UNCLIPPED,
    Branch,
    Limits,
    branch_of,
    clip_of,
    weak_channels,
)
from slim_det.compress.prune.reconstruct.layers import LinearLayer
from slim_det.graph.linear_rules import Convolution
from slim_det.graph.operators import result_of
from slim_det.graph.program import DeployProgram


@dataclass(frozen=True)
class Sum:
    """An addition behind the branch of a convolution.

    Attributes:
        total: Variable of the sum.
        other: Variable that the branch is added to.
        branch: Convolution, and bias, batch norm and activation if it has them.
        clip: Interval that the activation behind the sum clips to; infinite without one.
    """

    total: str
    other: str
    branch: Branch
    clip: tuple[float, float]

    @property
    def clips_alone(self) -> bool:
        """Whether only the activation behind the sum clips."""
        return not self.branch.clips and self.clip != UNCLIPPED

    def limits(self, program: DeployProgram, other: np.ndarray) -> Limits | None:
        """Limits [P, C] of the outputs of the convolution if only the activation behind clips.

        Args:
            program: The cut program.
            other: What the other side is now, [P, C].
        """
        if not self.clips_alone:
            return None
        return replace(self.branch, clip=self.clip).limits(program, other.shape[1], other)


def sums_behind(
    program: DeployProgram, layers: Sequence[LinearLayer], changed: Set[str]
) -> dict[str, Sum]:
    """Weight name -> sum, for each layer that is repaired last of all that its sum depends on.

    It is needed if the other side changes, or if an activation clips what the sum is.

    Args:
        program: The unpruned program.
        layers: In the order in which they are repaired.
        changed: Variables that a cut changes.
    """
    found = {}
    for place, layer in enumerate(layers):
        one = _sum_behind(program, layer)
        if one is None or not (one.other in changed or one.clips_alone):
            continue
        waiting = [result_of(program.ops[use]) for rest in layers[place:] for use in rest.uses]
        later = {name for op in program.downstream(waiting) for name in op.output_arg_names}
        if one.other not in later.union(waiting):
            found[layer.weight] = one
    return found


def wanted_outputs(
    program: DeployProgram, behind: Sum, total: np.ndarray, other: np.ndarray, former: np.ndarray
) -> np.ndarray:
    """What a layer should give so that its sum is as before.

    Args:
        program: The cut program.
        behind: The sum behind the layer.
        total: What the sum was in the unpruned model, [P, C].
        other: What the other side is now, [P, C].
        former: What the layer gave in the unpruned model, [P, C]: for channels that batch norm all
            but removes, and as the nearest where an activation in the branch clips.
    """
    factor, shift = behind.branch.affine(program)
    weak = weak_channels(factor)
    wanted = (total.astype(np.float64) - other - shift) / np.where(weak, 1.0, factor)
    if behind.branch.clips:
        wanted = behind.branch.limits(program, total.shape[1]).nearest(wanted, former)
    found: np.ndarray = np.where(weak, former, wanted).astype(np.float32)
    return found


def at_positions(values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Values of one image [C, H, W] at some positions, [P, C]."""
    return values.reshape(len(values), -1)[:, chosen].T


def _sum_behind(program: DeployProgram, layer: LinearLayer) -> Sum | None:
    if len(layer.uses) != 1 or not isinstance(layer.rule, Convolution):
        return None
    if program.ops[layer.uses[0]].attrs.get("data_format") == "NHWC":
        return None
    branch = branch_of(program, layer.uses[0])
    reader = None if branch is None else program.only_reader(branch.end)
    if branch is None or reader is None or reader.type != "elementwise_add":
        return None
    left, right = reader.input("X"), reader.input("Y")
    other = right if left == branch.end else left
    shapes = {tuple(program.block.var(one).shape) for one in (left, right)}
    if other == branch.end or len(shapes) > 1 or program.is_parameter(other):
        return None
    total = result_of(reader)
    return Sum(total, other, branch, clip_of(program.only_reader(total)))
