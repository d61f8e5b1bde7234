"""Folds batch norm into the convolution before it."""

from __future__ import annotations

from typing import Any

import numpy as np

from slim_det.graph.program import CONVOLUTIONS, DeployProgram
from slim_det.graph.tracing import deployment_program


@deployment_program()
def fold_batch_norm(p: DeployProgram) -> None:
    """Replace each batch norm that alone reads a convolution by a bias, in place.

    In evaluation batch norm is the affine map ``k * x + beta - k * mean`` of every channel with
    ``k = gamma / sqrt(variance + epsilon)`` (1502.03167, algorithm 2). The factor goes into the
    weight, the rest is added. The output keeps its name, so layers are found as before.

    Args:
        p: The program. A convolution whose weight or output has another reader, and one with a
            bias of its own between it and the batch norm, is left as it is.
    """
    for op in [op for op in p.block.ops if op.type == "batch_norm"]:
        convolution = p.writer(op.input("X")[0])
        if convolution is not None and _can_be_folded(p, convolution):
            _fold(p, convolution, op)


def _can_be_folded(p: DeployProgram, convolution: Any) -> bool:
    return (
        convolution.type in CONVOLUTIONS
        and len(p.readers(convolution.output("Output")[0])) == 1
        and len(p.readers(convolution.input("Filter")[0])) == 1
    )


def _fold(p: DeployProgram, convolution: Any, norm: Any) -> None:
    slots = ("Scale", "Bias", "Mean", "Variance")
    gamma, beta, mean, variance = (p.value(norm.input(s)[0]).astype(np.float64) for s in slots)
    factor = gamma / np.sqrt(variance + norm.attr("epsilon"))
    weight = convolution.input("Filter")[0]
    folded = p.value(weight).astype(np.float64) * factor.reshape(-1, 1, 1, 1)
    p.set_value(weight, folded.astype(np.float32))
    bias, output = f"{weight}.folded_bias", norm.output("Y")[0]
    p.set_value(bias, (beta - mean * factor).astype(np.float32))
    statistics = [name for slot in slots for name in norm.input(slot)]
    place = p.block.ops.index(norm)
    p.block._remove_op(place)
    p.insert(
        place,
        "elementwise_add",
        {"X": convolution.output("Output"), "Y": [bias]},
        {"Out": [output]},
        {"axis": 1},
    )
    for name in dict.fromkeys(statistics):
        if not p.readers(name):
            p.block._remove_var(name)
