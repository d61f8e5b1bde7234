"""What an elimination needs of a group: the layers that read it, and the rows of each unit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from slim_det.compress.prune.groups import Group, ModelGroups
from slim_det.compress.prune.reconstruct.elimination import Reader
from slim_det.compress.prune.reconstruct.intercept import intercept_place
from slim_det.compress.prune.reconstruct.layers import LinearLayer
from slim_det.compress.prune.reconstruct.least_squares import without
from slim_det.compress.prune.reconstruct.moments import Inputs
from slim_det.compress.prune.reconstruct.observe import weight_shape
from slim_det.graph.operators import weight_of
from slim_det.graph.program import DeployProgram


def reading_layers(
    groups: ModelGroups, names: list[str], layers: dict[str, LinearLayer]
) -> list[LinearLayer]:
    """The linear layers that read channels of some groups, in order."""
    units = np.concatenate([groups.groups[name].units for name in names])
    reading = {axis.parameter for axis in groups.axes_reading(units)}
    return [layer for name, layer in layers.items() if name in reading]


def readers_of(
    group: Group,
    groups: ModelGroups,
    program: DeployProgram,
    layers: dict[str, LinearLayer],
    inputs: dict[str, Inputs],
    ridge: float,
) -> list[Reader]:
    """One reader for each layer that reads a group; one for each part of a grouped layer.

    Args:
        group: The group.
        groups: All groups of the model.
        program: The unpruned program.
        layers: Weight name -> linear layer.
        inputs: Weight name -> what is known of the layer's inputs.
        ridge: See `Reader`.
    """
    readers = []
    for axis in groups.axes_reading(group.units):
        if axis.parameter in inputs:
            matrix = _matrix(program, layers[axis.parameter])
            squares = inputs[axis.parameter].squares
            rows = unit_rows(group.units, axis.ids, matrix.shape[1] // len(axis.ids))
            readers += [Reader(xx, w, rows, ridge) for xx, w in zip(squares, matrix)]
    return readers


def readers_without(
    units: np.ndarray,
    cuts: Sequence[np.ndarray],
    groups: ModelGroups,
    program: DeployProgram,
    layers: dict[str, LinearLayer],
    inputs: dict[str, Inputs],
    ridge: float,
) -> list[dict[str, np.ndarray]]:
    """Parameters of the linear layers that read some units, solved for without these.

    Shapes stay as they are: the weights of what is removed are zero.

    Args:
        units: Identities of all units whose readers are solved for.
        cuts: Identities of the removed ones of each cut.
        groups: All groups of the model.
        program: The unpruned program.
        layers: Weight name -> linear layer.
        inputs: Weight name -> what is known of the layer's inputs.
        ridge: Relative to the mean of the squared inputs that remain.

    Returns:
        For each cut: variable of the program -> weight, or bias or batch norm mean that takes the
        intercept.
    """
    found: list[dict[str, np.ndarray]] = [{} for _ in cuts]
    for axis in groups.axes_reading(units):
        if axis.parameter not in inputs:
            continue
        layer, seen = layers[axis.parameter], inputs[axis.parameter]
        op = program.ops[layer.uses[0]]
        shape = weight_shape(program, op)
        matrix, place = _matrix(program, layer), intercept_place(program, layer)
        for values, removed in zip(found, cuts):
            gone = np.repeat(np.isin(axis.ids, removed), matrix.shape[1] // len(axis.ids))
            solved = np.array([without(xx, w, gone, ridge) for xx, w in zip(seen.squares, matrix)])
            values[weight_of(op)] = layer.rule.weight(op, solved, shape).astype(np.float32)
            if place is not None:
                added = np.einsum("gd,gdm->gm", seen.x, matrix - solved) / max(seen.count, 1)
                values[place.variable] = place.moved(program, added)
    return found


def _matrix(program: DeployProgram, layer: LinearLayer) -> np.ndarray:
    """The weights of a layer, float64 [G, D, M]."""
    op = program.ops[layer.uses[0]]
    return layer.rule.matrix(op, program.value(weight_of(op)).astype(np.float64))


def unit_rows(units: np.ndarray, ids: np.ndarray, size: int) -> np.ndarray:
    """Rows of a matrix that belong to each unit.

    Args:
        units: Identities of the units, int64 [U].
        ids: Identity of each input channel, int64 [C]; a unit may have several channels, or none.
        size: Rows of one channel.

    Returns:
        int64 [U, B]; -1 fills up units with fewer rows than others.
    """
    found = [np.flatnonzero(ids == unit) for unit in units]
    widest = max(len(channels) for channels in found)
    rows = np.full((len(units), widest * size), -1)
    for unit, channels in enumerate(found):
        every = channels[:, None] * size + np.arange(size)
        rows[unit, : every.size] = every.ravel()
    return rows
