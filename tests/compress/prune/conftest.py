"""Fixtures of the pruning tests."""

from __future__ import annotations

from collections.abc import Iterator

import paddle
import pytest


@pytest.fixture
def float64() -> Iterator[None]:
    """Layers made during a test hold float64."""
    before = paddle.get_default_dtype()
    paddle.set_default_dtype("float64")
    try:
        yield
    finally:
        paddle.set_default_dtype(before)
