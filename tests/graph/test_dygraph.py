"""Evaluation mode ends with the modes of before, and the blank batch is black."""

from __future__ import annotations

import paddle
import pytest

from slim_det.graph.dygraph import blank_batch, evaluation_mode


def test_every_layer_gets_its_mode_back() -> None:
    """Also a layer in another mode than the rest, and after an error."""
    net = paddle.nn.Sequential(paddle.nn.Linear(1, 1), paddle.nn.Dropout())
    net.train()
    net[1].eval()
    with pytest.raises(KeyError), evaluation_mode(net):
        assert not any(layer.training for layer in net.sublayers(include_self=True))
        raise KeyError
    assert [layer.training for layer in net.sublayers(include_self=True)] == [True, True, False]


def test_blank_batch() -> None:
    batch = {name: value.numpy().tolist() for name, value in blank_batch((1, 2)).items()}
    assert batch == {
        "image": [[[[0.0, 0.0]]] * 3],
        "im_shape": [[1.0, 2.0]],
        "scale_factor": [[1.0, 1.0]],
    }
