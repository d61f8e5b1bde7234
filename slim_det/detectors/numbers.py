"""Lets ppdet join numbers that Paddle no longer gives a dimension."""

from __future__ import annotations

from typing import Any

import paddle

_concat_of_paddle = paddle.concat


def join_numbers() -> None:
    """Let `paddle.concat` join tensors without dimensions into a list, instead of failing.

    Two-stage detectors of ppdet join elements of tensors, which had the shape [1] when the code
    was written, and have none since Paddle 2.6.
    """
    paddle.concat = _concat


@paddle.jit.not_to_static
def _concat(x: Any, axis: Any = 0, name: Any = None, **kwargs: Any) -> Any:
    if isinstance(x, (list, tuple)) and x and not any(len(tensor.shape) for tensor in x):
        x = [tensor.reshape([1]) for tensor in x]
    return _concat_of_paddle(x, axis, name, **kwargs)
