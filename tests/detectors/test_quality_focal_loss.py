"""The quality focal loss against its formula, written with loops."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from slim_det.detectors.paddle_changes import quality_focal_loss

LABELS = [1, 3, -1, 0]  # 3 and -1 are background
SCORES = [0.8, 0.5, 0.5, 0.0]


def by_hand(logits: np.ndarray) -> list[float]:
    found = []
    for row, label, score in zip(logits, LABELS, SCORES):
        total = 0.0
        for index, logit in enumerate(row):
            p, y = 1.0 / (1.0 + np.exp(-logit)), score if index == label else 0.0
            total += abs(y - p) ** 2 * -(y * np.log(p) + (1.0 - y) * np.log(1.0 - p))
        found.append(total)
    return found


@pytest.mark.parametrize("use_sigmoid", [True, False])
def test_the_formula(use_sigmoid: bool) -> None:
    logits = np.random.default_rng(0).normal(0.0, 2.0, (4, 3))
    given = logits if use_sigmoid else 1.0 / (1.0 + np.exp(-logits))
    pred = paddle.to_tensor(given.astype("float32"), stop_gradient=False)
    target = (paddle.to_tensor(LABELS), paddle.to_tensor(SCORES, "float64"))
    loss = quality_focal_loss(pred, target, 2.0, use_sigmoid)
    assert loss.numpy() == pytest.approx(by_hand(logits), rel=1e-4)
    loss.sum().backward()
    assert np.isfinite(pred.grad.numpy()).all()
