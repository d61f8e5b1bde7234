"""`paddle.concat` joins numbers, and everything else as before."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import paddle
import pytest

from slim_det.detectors.paddle_changes import follow_paddle


@pytest.fixture(autouse=True)
def joined() -> Iterator[None]:
    before = paddle.concat
    follow_paddle()
    yield
    paddle.concat = before


def test_numbers_become_a_list() -> None:
    found = paddle.concat([paddle.to_tensor(3), paddle.to_tensor(5)])
    assert found.tolist() == [3, 5]
    assert paddle.concat((paddle.to_tensor(1.5),), axis=0).tolist() == [1.5]


def test_gradients_pass() -> None:
    x = paddle.to_tensor(2.0, stop_gradient=False)
    paddle.concat([x, x * 3.0]).sum().backward()
    assert float(x.grad) == 4.0


def test_other_tensors_are_joined_as_before() -> None:
    x = paddle.to_tensor(np.arange(6.0).reshape(2, 3))
    assert paddle.concat([x, x], axis=1).shape == [2, 6]
    assert paddle.concat(x=[x, x], axis=-1, name="y").shape == [2, 6]
    assert paddle.concat([x, x]).tolist() == x.tolist() * 2


def test_numbers_and_lists_do_not_mix() -> None:
    with pytest.raises(ValueError):
        paddle.concat([paddle.to_tensor(3), paddle.to_tensor([5])])
