"""A configuration gives the same detector however often it is built."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import paddle
import pytest
from ppdet.core.workspace import register

from slim_det.compress.tensors import tensor_shapes
from slim_det.detectors.build import build_detector


class GrowingNet(paddle.nn.Layer):
    """Changes what it is given, as PicoDet's neck does."""

    def __init__(self, widths: list[int] = [3], nested: dict[str, list[int]] | None = None) -> None:  # noqa: B006
        super().__init__()
        widths.append(widths[-1] + 1)
        self.widths, self.nested = widths, nested
        if nested:
            nested["more"].append(7)
        self.layer = paddle.nn.Linear(1, sum(widths))


@pytest.fixture
def registered(fresh_config: Any) -> Iterator[Any]:
    """ppdet's configuration with the net, which is gone afterwards."""
    register(GrowingNet)
    yield fresh_config
    del fresh_config["GrowingNet"]


@pytest.mark.usefixtures("registered")
def test_defaults_stay_as_they_are() -> None:
    first, second = (build_detector({"architecture": "GrowingNet"}) for _ in range(2))
    assert first.widths == second.widths == [3, 4]
    assert (
        tensor_shapes(first)
        == tensor_shapes(second)
        == {"layer.weight": (1, 7), "layer.bias": (7,)}
    )
    assert [p.name for p in first.parameters()] == [p.name for p in second.parameters()]
    assert GrowingNet.__init__.__defaults__ == ([3], None)


def test_settings_stay_as_they_are(registered: Any) -> None:
    settings = registered["GrowingNet"]
    settings.update(widths=[5], nested={"more": [1]})
    first, second = (build_detector({"architecture": "GrowingNet"}) for _ in range(2))
    assert first.widths == second.widths == [5, 6]
    assert first.nested == second.nested == {"more": [1, 7]}
    assert dict(settings) == {"widths": [5], "nested": {"more": [1]}}
