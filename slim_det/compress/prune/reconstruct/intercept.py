"""Where a layer has room for an intercept."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from slim_det.compress.prune.reconstruct.layers import LinearLayer
from slim_det.graph.linear_rules import Product
from slim_det.graph.op import Op
from slim_det.graph.operators import declared, result_of
from slim_det.graph.program import DeployProgram


@dataclass(frozen=True)
class Place:
    """The parameter that takes the intercept of a layer: added to a bias, taken from a mean."""

    variable: str
    sign: int

    def moved(self, program: DeployProgram, added: np.ndarray) -> np.ndarray:
        """The parameter with intercepts [G, M] of the layer in it."""
        old = program.value(self.variable)
        return (old + self.sign * added.reshape(old.shape)).astype(old.dtype)


def intercept_place(program: DeployProgram, layer: LinearLayer) -> Place | None:
    """Where a layer has room for an intercept: its bias, or the batch norm that alone reads it.

    None if its uses differ in this, or share the parameter with another layer.
    """
    places = {_place_behind(program, program.ops[use]) for use in layer.uses}
    if len(places) != 1:
        return None
    place = places.pop()
    if place is None or len(program.readers(place.variable)) != len(layer.uses):
        return None
    return place


def _place_behind(program: DeployProgram, op: Op) -> Place | None:
    addition = program.bias_addition(op)
    if addition is not None:
        bias = Place(program.bias_parameter(op), +1)
        return bias if is_channel_bias(program, op, addition) else None
    reader = program.only_reader(result_of(op))
    if reader is not None and normalizes_channels(program, op, reader):
        return Place(reader.input("Mean"), -1)
    return None


def is_channel_bias(program: DeployProgram, op: Op, addition: Op) -> bool:
    """Whether an addition alone reads a layer, and has one number for each of its channels."""
    if program.only_reader(result_of(op)) is None:
        return False
    shape = list(program.block.var(result_of(op)).shape)
    added = list(program.block.var(addition.input("Y")).shape)
    missing, axis = len(shape) - len(added), int(addition.attrs.get("axis", -1))
    first = axis if missing and axis >= 0 else missing
    channels = len(shape) - 1 if _channels_last(op) else 1
    expected = [shape[channels] if i == channels else 1 for i in range(len(shape))]
    return [1] * first + added + [1] * (missing - first) == expected


def normalizes_channels(program: DeployProgram, op: Op, reader: Op) -> bool:
    """Whether what reads the result of a layer is a batch norm of its channels."""
    if "batch_norm" not in reader.type:
        return False
    rank = len(program.block.var(result_of(op)).shape)
    return rank == 2 or _channels_last(op) == (reader.attrs.get("data_layout") == "NHWC")


def _channels_last(op: Op) -> bool:
    return isinstance(declared(op).linear, Product) or op.attrs.get("data_format") == "NHWC"
