"""A head's own image size is put aside, and back."""

from __future__ import annotations

import paddle
import pytest

from slim_det.detectors.fixed_size import at_any_size


class Head(paddle.nn.Layer):
    def __init__(self, eval_size: list[int] | None) -> None:
        super().__init__()
        self.eval_size = eval_size


def test_sizes_are_put_aside_and_back() -> None:
    model = paddle.nn.Sequential(Head([320, 416]), Head(None), paddle.nn.ReLU())
    with pytest.raises(KeyError), at_any_size(model):
        assert model[0].eval_size is None
        raise KeyError("x")
    assert [model[0].eval_size, model[1].eval_size] == [[320, 416], None]
    assert not hasattr(model[2], "eval_size")
