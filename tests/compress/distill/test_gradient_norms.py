"""Norms of gradients against values worked out by hand."""

from __future__ import annotations

import paddle
import pytest

from slim_det.compress.distill.gradient_norms import (
    GradientNorm,
    dominating,
    gradient_norm,
    gradient_norms,
    table,
)


def parameters() -> list[paddle.Tensor]:
    linear = paddle.nn.Linear(1, 1)
    for parameter, value in zip(linear.parameters(), ([[3.0]], [4.0])):
        parameter.set_value(paddle.to_tensor(value))
    return list(linear.parameters())


def test_no_parameters_or_no_dependence() -> None:
    w, b = parameters()
    assert gradient_norm(w.sum(), []) == 0.0
    assert gradient_norm(paddle.ones([]), [w, b]) == 0.0
    assert gradient_norm(b.sum(), [w]) == 0.0


def test_norm_over_all_parameters() -> None:
    """d/dw, d/db of (w^2 + b^2) / 2 at (3, 4) is (3, 4): norm 5."""
    w, b = parameters()
    loss = ((w * w).sum() + (b * b).sum()) / 2
    assert gradient_norm(loss, [w, b]) == pytest.approx(5.0)
    assert gradient_norm(loss, [b]) == pytest.approx(4.0)


def test_the_graph_and_the_gradients_stay() -> None:
    w, b = parameters()
    loss = (w * w).sum()
    gradient_norm(loss, [w, b])
    assert w.grad is None
    loss.backward()
    assert w.grad.item() == 6.0


def test_norms_are_those_at_the_full_weight() -> None:
    """A term at a quarter of its weight is reported four times as strong as it enters."""
    w, b = parameters()
    detection, term = (w * w).sum(), 0.25 * 80.0 * b.sum()
    measured = gradient_norms(detection, {"distill_l2": (term, 0.25)}, [w, b])
    assert measured == [GradientNorm("loss", 9.0, 6.0), GradientNorm("distill_l2", 320.0, 80.0)]
    assert dominating(measured) == measured[1:]
    text = table(measured).splitlines()
    assert len(text) == 3
    assert text[2].split() == ["distill_l2", "320", "80", "13.3", "x"]


@pytest.mark.parametrize(("norm", "dominates"), [(10.0, False), (10.01, True)])
def test_more_than_ten_times_dominates(norm: float, dominates: bool) -> None:
    assert (
        bool(dominating([GradientNorm("loss", 1.0, 1.0), GradientNorm("distill_l2", 1.0, norm)]))
        is dominates
    )


def test_a_detection_loss_without_gradient() -> None:
    measured = [
        GradientNorm("loss", 0.0, 0.0),
        GradientNorm("a", 1.0, 1.0),
        GradientNorm("b", 0.0, 0.0),
    ]
    assert dominating(measured) == [measured[1]]
    assert table(measured).splitlines()[2].split()[-1] == "-"
