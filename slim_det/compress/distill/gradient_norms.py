"""Gradient norms of the parts of a loss, for the log of a term's first step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import paddle
from paddle import Tensor

DOMINATES = 10.0
"""A term with a gradient this many times that of the detection loss leaves it no effect."""


@dataclass(frozen=True)
class GradientNorm:
    """One line of the report.

    Attributes:
        name: Key in the dict of losses.
        value: The loss at its full weight.
        norm: L2 norm of the gradient of that value with respect to the student's parameters.
    """

    name: str
    value: float
    norm: float


def gradient_norm(loss: Tensor, parameters: Sequence[Tensor]) -> float:
    """L2 norm of a scalar's gradient over all parameters together; the graph and ``.grad`` stay.

    It is 0 where the loss depends on none of the parameters.
    """
    if loss.stop_gradient or not parameters:
        return 0.0
    gradients = paddle.grad([loss], list(parameters), retain_graph=True, allow_unused=True)
    squares = [g.astype("float32").square().sum() for g in gradients if g is not None]
    return float(paddle.add_n(squares).sqrt()) if squares else 0.0


def gradient_norms(
    detection: Tensor,
    terms: Mapping[str, tuple[Tensor, float]],
    parameters: Sequence[Tensor],
) -> list[GradientNorm]:
    """Measure the detection loss, named ``loss``, and then every term.

    Args:
        detection: The student's own loss.
        terms: Name -> the value that enters the total, and the factor of its schedule (above 0).
        parameters: The student's parameters that learn.
    """
    measured = [GradientNorm("loss", float(detection), gradient_norm(detection, parameters))]
    for name, (value, factor) in terms.items():
        norm = gradient_norm(value, parameters) / factor
        measured.append(GradientNorm(name, float(value) / factor, norm))
    return measured


def table(measured: Sequence[GradientNorm]) -> str:
    """The report as lines of a table; the last column is in units of the first line's norm."""
    width = max(len(one.name) for one in measured)
    lines = [f"{'':{width}}  {'value':>12}  {'gradient':>12}  {'of loss':>9}"]
    for one in measured:
        share = f"{one.norm / measured[0].norm:.3g} x" if measured[0].norm else "-"
        lines.append(f"{one.name:{width}}  {one.value:12.6g}  {one.norm:12.6g}  {share:>9}")
    return "\n".join(lines)


def dominating(measured: Sequence[GradientNorm]) -> list[GradientNorm]:
    """The terms that leave the detection loss, the first line, without effect."""
    return [one for one in measured[1:] if one.norm > DOMINATES * measured[0].norm]
