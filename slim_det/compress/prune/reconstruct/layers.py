"""The layers whose input a pruning changes, and what is known about each of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from slim_det.compress.prune.groups import ModelGroups
from slim_det.graph.linear_rules import LinearRule, Product
from slim_det.graph.op import Op
from slim_det.graph.operators import declared, result_of, weight_of
from slim_det.graph.program import DeployProgram, Program


@dataclass(frozen=True)
class LinearLayer:
    """A weight with every operator that multiplies by it.

    Attributes:
        weight: Name of the weight in the state dict.
        uses: Indices of the operators in the program, in order.
        rule: How they are written as matrix products.
    """

    weight: str
    uses: tuple[int, ...]
    rule: LinearRule

    def inputs(self, program: Program) -> list[str]:
        """All variables that its operators read as data."""
        return [name for use in self.uses for name in data_names(program.ops[use])]


@dataclass(frozen=True)
class Changed:
    """What a pruning changes besides the removed channels.

    Attributes:
        layers: Linear layers that read a cut or a changed tensor, in the order in which they can be
            repaired: no layer depends on a later one.
        left: Weight name -> why the layer cannot be repaired.
        batch_norms: Indices of the batch norms that read a changed tensor.
        variables: The changed tensors.
    """

    layers: tuple[LinearLayer, ...]
    left: dict[str, str]
    batch_norms: tuple[int, ...]
    variables: frozenset[str] = frozenset()


def data_names(op: Op) -> list[str]:
    """What an operator multiplies with its weight, and where it samples it."""
    slots = (declared(op).data, *declared(op).sampling)
    return [name for name in map(op.input, slots) if name]


def linear_layers(program: DeployProgram, parameters: dict[str, str]) -> dict[str, LinearLayer]:
    """Weight name -> layer, for every weight that only linear operators use, all in the same way.

    Args:
        program: The operators.
        parameters: Variable -> name in the state dict.
    """
    uses: dict[str, list[int]] = {}
    for index, op in enumerate(program.ops):
        if weight_of(op) in parameters and declared(op).linear is not None:
            uses.setdefault(weight_of(op), []).append(index)
    found = {}
    for variable, indices in uses.items():
        ops = [program.ops[index] for index in indices]
        rule = declared(ops[0]).linear
        rank = len(program.block.var(variable).shape)
        forms = {_form(op, rank) for op in ops}
        alike = len(forms) == 1 and None not in forms
        if rule is not None and alike and program.readers(variable) == ops:
            found[parameters[variable]] = LinearLayer(parameters[variable], tuple(indices), rule)
    return found


def _form(op: Op, weight_rank: int) -> tuple[int, int, int] | None:
    """What must be the same for all uses of a weight; None if its rule does not cover the use."""
    rule = declared(op).linear
    axes = 2 if isinstance(rule, Product) else 4
    if rule is None or op.attrs.get("trans_x") or weight_rank != axes:
        return None
    return rule.in_axis(op), rule.out_axis(op), int(op.attrs.get("groups") or 1)


def changed_by(
    program: DeployProgram, parameters: dict[str, str], groups: ModelGroups, removed: np.ndarray
) -> Changed:
    """What changes in an unpruned program when units are removed.

    Args:
        program: The unpruned program.
        parameters: Variable -> name in the state dict.
        groups: The channel groups of its model.
        removed: Identities of the units.
    """
    reading = {axis.parameter for axis in groups.axes_reading(removed)}
    readers = [op for op in program.ops if parameters.get(weight_of(op), "") in reading]
    first = [result_of(op) for op in readers]
    behind = program.downstream(first)
    changed = {*first, *(name for op in behind for name in op.output_arg_names)}
    layers, left = [], {}
    known = linear_layers(program, parameters)
    for op in _in_order(program, [*readers, *behind]):
        weight = parameters.get(weight_of(op), "")
        if not weight or not (weight in reading or changed.intersection(data_names(op))):
            continue
        if weight not in known:
            left[weight] = f"its use by operator '{op.type}' is not written as a matrix product"
        elif known[weight] not in layers:
            layers.append(known[weight])
    norms = [
        index
        for index, op in enumerate(program.ops)
        if "batch_norm" in op.type and op.input("X") in changed
    ]
    ordered, circular = _repairable_order(program, layers)
    left.update({layer.weight: "its input depends on itself" for layer in circular})
    return Changed(tuple(ordered), left, tuple(norms), frozenset(changed))


def _in_order(program: Program, ops: Iterable[Op]) -> list[Op]:
    chosen = set(map(id, ops))
    return [op for op in program.ops if id(op) in chosen]


def _repairable_order(
    program: Program, layers: list[LinearLayer]
) -> tuple[list[LinearLayer], list[LinearLayer]]:
    """Sort layers so that each comes after all that it depends on, and name those that cannot."""
    behind = {
        layer.weight: {
            name
            for op in program.downstream([result_of(program.ops[use]) for use in layer.uses])
            for name in op.output_arg_names
        }.union(result_of(program.ops[use]) for use in layer.uses)
        for layer in layers
    }
    ordered: list[LinearLayer] = []
    circular: list[LinearLayer] = []
    waiting = list(layers)

    def before(layer: LinearLayer, other: LinearLayer) -> bool:
        return not behind[layer.weight].isdisjoint(other.inputs(program))

    while waiting:
        free = [one for one in waiting if not any(before(other, one) for other in waiting)]
        if free:
            ordered.append(free[0])
            waiting.remove(free[0])
            continue
        # Without one of the layers that come back to themselves, others may be free.
        chosen = next((layer for layer in waiting if before(layer, layer)), waiting[0])
        circular.append(chosen)
        waiting.remove(chosen)
    return ordered, circular
