"""Folds batch norm into the convolution before it."""

from __future__ import annotations

import numpy as np

from slim_det.graph.op import Op
from slim_det.graph.operators import declared, result_of, weight_of
from slim_det.graph.program import DeployProgram
from slim_det.graph.tracing import deployment_program

_STATISTICS = ("Scale", "Bias", "Mean", "Variance")


@deployment_program()
def fold_batch_norm(p: DeployProgram) -> None:
    """Replace each batch norm that is the only reader of a convolution by a bias, in place.

    In evaluation, batch norm is the affine map ``k * x + beta - k * mean`` of every channel with
    ``k = gamma / sqrt(variance + epsilon)`` (1502.03167, algorithm 2). The factor goes into the
    weight, the rest is added. The output keeps its name, so layers are found as before.

    A convolution stays as it is if its weight or output has another reader, or if a bias of its
    own comes before the batch norm.
    """
    for op in [op for op in p.ops if op.type == "batch_norm"]:
        convolution = p.writer(op.input("X"))
        if convolution is not None and _can_be_folded(p, convolution):
            _fold(p, convolution, op)


def affine_map(p: DeployProgram, norm: Op) -> tuple[np.ndarray, np.ndarray]:
    """Factor and shift of every channel that a batch norm is in evaluation, float64 [C]."""
    gamma, beta, mean, variance = (
        p.value(norm.input(slot)).astype(np.float64) for slot in _STATISTICS
    )
    factor = gamma / np.sqrt(variance + norm.attrs["epsilon"])
    return factor, beta - mean * factor


def _can_be_folded(p: DeployProgram, convolution: Op) -> bool:
    return (
        declared(convolution).int8_kernel
        and len(p.readers(result_of(convolution))) == 1
        and len(p.readers(weight_of(convolution))) == 1
    )


def _fold(p: DeployProgram, convolution: Op, norm: Op) -> None:
    factor, shift = affine_map(p, norm)
    weight = weight_of(convolution)
    folded = p.value(weight).astype(np.float64) * factor.reshape(-1, 1, 1, 1)
    p.set_value(weight, folded.astype(np.float32))
    bias = f"{weight}.folded_bias"
    p.set_value(bias, shift.astype(np.float32))
    p.insert(
        p.remove(norm),
        "elementwise_add",
        {"X": [result_of(convolution)], "Y": [bias]},
        {"Out": [norm.output("Y")]},
        {"axis": 1},
    )
    for name in dict.fromkeys(norm.input(slot) for slot in _STATISTICS):
        if not p.readers(name):
            p.block._remove_var(name)
