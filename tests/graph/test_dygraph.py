"""Modes and random numbers are those of before at the end, and the blank batch is black."""

from __future__ import annotations

import multiprocessing
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import paddle
import pytest

from slim_det.graph.dygraph import blank_batch, evaluation_mode, loss_mode, seeded


def test_every_layer_gets_its_mode_back() -> None:
    """Also a layer in another mode than the rest, and after an error."""
    net = paddle.nn.Sequential(paddle.nn.Linear(1, 1), paddle.nn.Dropout())
    net.train()
    net[1].eval()
    with pytest.raises(KeyError), evaluation_mode(net):
        assert not any(layer.training for layer in net.sublayers(include_self=True))
        raise KeyError
    assert [layer.training for layer in net.sublayers(include_self=True)] == [True, True, False]


@pytest.mark.parametrize("norm", [paddle.nn.BatchNorm2D, paddle.nn.BatchNorm])
def test_a_loss_with_the_statistics_as_they_are(norm: Callable[[int], Any]) -> None:
    """Only batch norms are in evaluation mode; they pass the statistics' own values on."""
    net = paddle.nn.Sequential(norm(1), paddle.nn.Dropout(0.0))
    net.eval()
    with pytest.raises(KeyError), loss_mode(net):
        assert [layer.training for layer in net.sublayers(include_self=True)] == [True, False, True]
        assert net(paddle.full([2, 1, 1, 1], 5.0)).tolist()[0][0][0][0] == pytest.approx(
            5, rel=1e-4
        )
        raise KeyError
    assert not any(layer.training for layer in net.sublayers(include_self=True))
    assert (net[0]._mean.item(), net[0]._variance.item()) == (0.0, 1.0)


def drawn() -> list[float]:
    """One number of each source."""
    return [random.random(), np.random.random(), paddle.rand([1]).item()]


def test_seeded_numbers() -> None:
    """In a process without the threads of other tests, which may draw numbers at any time."""
    process = multiprocessing.get_context("fork").Process(target=check_seeded_numbers)
    process.start()
    process.join(60)
    assert process.exitcode == 0


def check_seeded_numbers() -> None:
    """The same ones inside for a seed; outside they go on as if nothing had been drawn."""
    with seeded(4):
        paddle.seed(9)
        random.seed(9)
        np.random.seed(9)
        expected, inside = [drawn(), drawn()], []
        random.seed(9)
        np.random.seed(9)
        paddle.seed(9)
        outside = [drawn()]
        for seed in (1, 1, 2):
            with pytest.raises(KeyError), seeded(seed):
                inside.append(drawn())
                raise KeyError
        outside.append(drawn())
    assert outside == expected
    assert inside[0] == inside[1]
    assert not set(inside[0]).intersection(inside[2])


def test_blank_batch() -> None:
    batch = {name: value.numpy().tolist() for name, value in blank_batch((1, 2)).items()}
    assert batch == {
        "image": [[[[0.0, 0.0]]] * 3],
        "im_shape": [[1.0, 2.0]],
        "scale_factor": [[1.0, 1.0]],
    }
