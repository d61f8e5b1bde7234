"""A recorder keeps what layers read and return, and leaves nothing behind."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
import pytest
from paddle import nn

from slim_det.graph.activations import ActivationRecorder, output_array


class Times(nn.Layer):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return x * self.factor


class Chain(nn.Layer):
    """x -> 2x -> 6x -> 18x; one layer runs twice, one never."""

    def __init__(self) -> None:
        super().__init__()
        self.by_two, self.by_three, self.never = Times(2.0), Times(3.0), Times(0.0)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return self.by_three(self.by_three(self.by_two(x)))


def number(value: float) -> paddle.Tensor:
    return paddle.to_tensor([value])


def both(key: str, received: Any, output: Any) -> tuple[float, float]:
    return received.item(), output.item()


def layers(model: nn.Layer) -> dict[str, nn.Layer]:
    return dict(model.named_sublayers())


def hooks(model: nn.Layer) -> int:
    parts = model.sublayers(include_self=True)
    return sum(len(x._forward_post_hooks) + len(x._forward_pre_hooks) for x in parts)


def test_no_layers() -> None:
    with ActivationRecorder({}, both).recording() as kept:
        Chain()(number(1.0))
        assert kept == {}


def test_layers_that_run_once_twice_and_never() -> None:
    """One entry for each call, in order, with the input and the output of the layer."""
    model = Chain()
    with ActivationRecorder(layers(model), both).recording() as kept:
        model(number(1.0))
        assert kept == {"by_two": [(1.0, 2.0)], "by_three": [(2.0, 6.0), (6.0, 18.0)], "never": []}
        model(number(10.0))
        assert kept["by_two"] == [(1.0, 2.0), (10.0, 20.0)]
    assert hooks(model) == 0 and not any(kept.values())


def test_output_as_an_array() -> None:
    model = Chain()
    with ActivationRecorder({1: model.by_two}, output_array).recording() as kept:
        model(number(4.0))
        assert isinstance(kept[1][0], np.ndarray) and kept[1][0] == [8.0]


def test_none_is_not_kept() -> None:
    """A function that only looks; the model's outputs are the same."""
    model, seen = Chain(), []

    def look(key: str, received: Any, output: Any) -> None:
        seen.append(key)

    with ActivationRecorder(layers(model), look).recording() as kept:
        assert model(number(1.0)).item() == 18.0
        assert not any(kept.values())
    assert seen == ["by_two", "by_three", "by_three"]


def test_layer_under_two_keys() -> None:
    model = Chain()
    recorder = ActivationRecorder({"a": model.by_two, "b": model.by_two}, both)
    with recorder.recording() as kept:
        model(number(1.0))
        assert kept == {"a": [(1.0, 2.0)], "b": [(1.0, 2.0)]}


def test_layer_without_a_positional_input() -> None:
    model = Times(2.0)
    with ActivationRecorder({"it": model}, lambda *call: call[1:]).recording() as kept:
        model(x=number(1.0))
        received, output = kept["it"][0]
        assert received is None and output.item() == 2.0


@pytest.mark.parametrize("where", ["block", "read"])
def test_hooks_are_removed_after_an_exception(where: str) -> None:
    model = Chain()

    def fail(*call: Any) -> None:
        raise ValueError("stop")

    recorder = ActivationRecorder(layers(model), fail if where == "read" else both)
    with pytest.raises(ValueError, match="stop"), recorder.recording():
        assert hooks(model) == 3
        model(number(1.0))
        fail()
    assert hooks(model) == 0 and not any(recorder.kept.values())
    assert model(number(1.0)).item() == 18.0


def test_hooks_are_removed_where_one_cannot_be_registered() -> None:
    model = Chain()
    recorder = ActivationRecorder({"a": model.by_two, "b": "no layer"}, both)
    with pytest.raises(AttributeError), recorder.recording():
        pass
    assert hooks(model) == 0


def test_closed_recorder_keeps_nothing() -> None:
    """A newly attached recorder is closed; opening it forgets earlier results."""
    model = Chain()
    recorder = ActivationRecorder({"by_two": model.by_two}, both)
    with recorder.attached():
        model(number(1.0))
        assert recorder.kept == {"by_two": []}
        for value in (2.0, 3.0):
            recorder.open()
            model(number(value))
            assert recorder.kept == {"by_two": [(value, 2 * value)]}
        recorder.close()
        assert recorder.kept == {"by_two": []}
        model(number(4.0))
        assert recorder.kept == {"by_two": []}


def test_attached_twice_has_its_hooks_once() -> None:
    model = Chain()
    recorder = ActivationRecorder(layers(model), both)
    recorder.attach()
    recorder.attach()
    assert hooks(model) == 3
    recorder.detach()
    assert hooks(model) == 0
    recorder.detach()
    with recorder.recording() as kept:
        model(number(1.0))
        assert kept["by_two"] == [(1.0, 2.0)]
