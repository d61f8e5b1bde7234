"""Learned ranges: their gradients by hand and by differences, and what an optimizer sees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import paddle
import pytest

from slim_det.compress.quantize.layers import QuantConv2D, fold_factor
from slim_det.compress.quantize.learned import (
    LearnedClip,
    LearnedStep,
    LearnedWeightStep,
    gradient_scale,
    keep_positive,
)
from slim_det.compress.quantize.model import quantize_model, ranges_of
from slim_det.compress.quantize.quantizers import SharedRange
from slim_det.compress.quantize.record import QuantLayer, QuantRecord
from slim_det.compress.quantize.rounding import MIN_RANGE
from slim_det.compress.quantize.settings import read_quant_config
from slim_det.graph.integers import to_integers
from tests.support import assert_same_sums


def tensor(values: Any, learns: bool = True) -> paddle.Tensor:
    return paddle.to_tensor(np.asarray(values, "float32"), stop_gradient=not learns)


def run(quantizer: Any, values: Any, gradient: Any) -> tuple[np.ndarray, np.ndarray]:
    """Forward, then backward with a given gradient: the output and the gradient of the input."""
    x = tensor(values)
    out = quantizer(x)
    (out * tensor(gradient, learns=False)).sum().backward()
    return out.numpy(), x.grad.numpy()


# A range of 7 at 4 bits: integers -7 to 7, step 1.
VALUES = [[-9.0, -7.0, -2.3, 0.0, 0.4, 6.6, 7.5, 20.0]]
ROUNDED = [[-7.0, -7.0, -2.0, 0.0, 0.0, 7.0, 7.0, 7.0]]
GRADIENT = [[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]]
INSIDE = [[0.0, 0.0, 3.0, 4.0, 5.0, 6.0, 0.0, 0.0]]


def test_clip_by_hand() -> None:
    """What is clipped, or on the edge, pulls at the range; the rest passes straight through."""
    clip = LearnedClip("a", 7.0, 4)
    out, grad = run(clip, VALUES, GRADIENT)
    assert out.tolist() == ROUNDED and grad.tolist() == INSIDE
    assert clip.limit.grad.tolist() == [-1.0 - 2.0 + 7.0 + 8.0]


def test_step_by_hand() -> None:
    """(rounded - value) / step within the range, the largest integer beyond it."""
    step = LearnedStep("a", 7.0, 4)
    out, grad = run(step, VALUES, GRADIENT)
    assert out.tolist() == ROUNDED and grad.tolist() == INSIDE
    within = 3.0 * 0.3 + 5.0 * -0.4 + 6.0 * 0.4
    beyond = -7.0 * 1.0 - 7.0 * 2.0 + 7.0 * 7.0 + 7.0 * 8.0
    assert_same_sums(step.step.grad.item(), (within + beyond) / np.sqrt(8 * 7))


def test_scale_of_lsq() -> None:
    assert gradient_scale(0, 8) == pytest.approx(1 / np.sqrt(127))
    assert gradient_scale(100, 2) == pytest.approx(0.1)


def test_a_batch_does_not_change_the_scale_of_a_step() -> None:
    """The mean loss of two equal images has the gradient of one."""
    one, two = LearnedStep("a", 7.0, 4), LearnedStep("b", 7.0, 4)
    run(one, VALUES, GRADIENT)
    run(two, VALUES * 2, np.asarray(GRADIENT * 2) / 2)
    assert_same_sums(one.step.grad.item(), two.step.grad.item())


def test_clip_against_differences() -> None:
    """With 16 bits rounding is negligible, so the difference of the clipped sum is the truth."""
    rng = np.random.default_rng(0)
    values, weights = rng.normal(0, 2, (4, 50)), rng.normal(size=(4, 50))
    limit = 1.7
    clip = LearnedClip("a", limit, 16)
    _, grad = run(clip, values, weights)

    def loss(x: np.ndarray, a: float) -> float:
        return float((np.clip(x, -a, a) * weights).sum())

    slope = (loss(values, limit + 1e-6) - loss(values, limit - 1e-6)) / 2e-6
    assert clip.limit.grad.item() == pytest.approx(slope, rel=1e-4)
    moved = values.copy()
    moved[1, 3] += 1e-6
    slope = (loss(moved, limit) - loss(values, limit)) / 1e-6
    assert grad[1, 3] == pytest.approx(slope, rel=1e-4, abs=1e-6)


def test_weight_steps_of_what_is_evaluated_end_at_the_largest_weight() -> None:
    """The second channel's largest integer is 7 and not 2; the first is clipped as in training."""
    weight = paddle.to_tensor(np.array([[[[2.0, 0.4]]], [[[0.6, 0.3]]]], "float32"))
    steps = LearnedWeightStep("a", np.asarray([1.4, 2.1]), 4, True)
    assert steps(weight).numpy().ravel() == pytest.approx([1.4, 0.4, 0.6, 0.3])
    steps.eval()
    assert steps.ranges(weight.numpy()) == pytest.approx([1.4, 0.6])
    expected = [1.4, 0.4, 0.6, 0.6 / 7 * 4]
    assert steps(weight).numpy().ravel() == pytest.approx(expected)


@pytest.mark.parametrize("per_channel", [False, True])
def test_weight_steps_against_differences(per_channel: bool) -> None:
    """With the integers held, a rounded value is q s: its slope is q; plus -v/s of the round."""
    rng = np.random.default_rng(1)
    weight, up = rng.normal(size=(3, 2, 2, 2)), rng.normal(size=(3, 2, 2, 2))
    start = np.asarray([0.9, 1.5, 9.0]) if per_channel else np.asarray([1.2])
    steps = LearnedWeightStep("a", start, 4, per_channel)
    out, _ = run(steps, weight, up)
    size = start.reshape(-1, 1, 1, 1) / 7
    integers = np.clip(np.rint(weight / size), -7, 7)
    assert out == pytest.approx(integers * size, rel=1e-5)
    slope = np.where(np.abs(weight) <= 7 * size, integers - weight / size, integers) * up
    wanted = slope.reshape(3, -1).sum(1) if per_channel else slope.sum().reshape(1)
    count = 8 if per_channel else 24
    assert_same_sums(steps.steps.grad.numpy(), wanted / np.sqrt(count * 7))
    largest = np.abs(weight).reshape(3, -1).max(axis=1) if per_channel else np.inf
    assert steps.ranges(weight) == pytest.approx(np.minimum(start, largest), rel=1e-6)


MAKERS: list[Callable[[], Any]] = [
    lambda: LearnedClip("a", 7.0, 4),
    lambda: LearnedStep("a", 7.0, 4),
    lambda: LearnedWeightStep("a", np.asarray([7.0]), 4, False),
]


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("optimizer", ["Momentum", "AdamW"])
def test_frozen_range_is_not_trained(make: Callable[[], Any], optimizer: str) -> None:
    """Nor moved by momentum or decay that is left; it learns again once it is given back."""
    quantizer = make()
    (parameter,) = quantizer.parameters()
    trainer = getattr(paddle.optimizer, optimizer)(0.01, parameters=[parameter], weight_decay=0.1)

    def step() -> float:
        run(quantizer, VALUES, GRADIENT)
        trainer.step()
        trainer.clear_grad()
        return parameter.item()

    assert not quantizer.frozen
    values = [parameter.item(), step()]
    quantizer.frozen = True
    values += [step(), step()]
    quantizer.frozen = False
    values += [step()]
    assert [a != b for a, b in zip(values, values[1:])] == [True, False, False, True]


@pytest.mark.parametrize("make", MAKERS)
def test_range_never_falls_to_zero(make: Callable[[], Any]) -> None:
    quantizer = make()
    (parameter,) = quantizer.parameters()
    parameter.set_value(np.asarray([-3.0], "float32"))
    out, _ = run(quantizer, VALUES, GRADIENT)
    assert np.isfinite(out).all() and (np.abs(out) <= MIN_RANGE * 1.001).all()
    assert parameter.item() > 0.0
    found = quantizer.ranges(None)[0] if hasattr(quantizer, "ranges") else quantizer.range()
    assert found == pytest.approx(MIN_RANGE)


def test_values_that_need_no_gradient() -> None:
    """The image enters the first convolution; its range learns all the same."""
    for make in MAKERS[:2]:
        quantizer = make()
        quantizer(tensor(VALUES, learns=False)).sum().backward()
        (parameter,) = quantizer.parameters()
        assert parameter.grad is not None


def test_shared_range_learns_from_both_readers() -> None:
    source = LearnedClip("a", 7.0, 4)
    shared = SharedRange(source)
    run(source, VALUES, GRADIENT)
    run(shared, VALUES, GRADIENT)
    assert source.limit.grad.tolist() == [24.0]
    assert list(shared.parameters()) == [] and shared.range() == 7.0


def test_keep_positive_leaves_what_is_large_enough() -> None:
    steps = tensor([0.5, -1.0, 2.0])
    keep_positive(steps, 0.25)
    assert steps.tolist() == [0.5, 0.25, 2.0]


class Net(paddle.nn.Layer):
    """Two convolutions, the first with a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first = paddle.nn.Conv2D(3, 4, 3, bias_attr=False)
        self.norm = paddle.nn.BatchNorm2D(4)
        self.second = paddle.nn.Conv2D(4, 2, 1)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return self.second(self.norm(self.first(x)))


def net(**config: Any) -> Net:
    paddle.seed(3)
    with paddle.utils.unique_name.guard():
        model = Net()
    model.norm.weight.set_value(np.asarray([0.5, -2.0, 1.0, 3.0], "float32"))
    layers = [QuantLayer("first", norm="norm"), QuantLayer("second")]
    record = QuantRecord(read_quant_config(config), layers, {})
    quantize_model(model, record, {"first": 3.0, "second": 5.0})
    return model


@pytest.mark.parametrize("kind", ["channel_wise_abs_max", "abs_max"])
def test_deployed_integers_are_the_simulated_ones(kind: str) -> None:
    """Of the folded weight, learned steps, a batch norm with a negative scale."""
    model = net(weight_preprocess_type="LSQ", weight_quantize_type=kind)
    layer = model.first
    assert isinstance(layer, QuantConv2D)
    layer.weights.steps.set_value(layer.weights.steps * 0.7)
    ranges = ranges_of(model)["first.weight"].weight_ranges
    folded = layer.folded_weight()
    integers = to_integers(folded, ranges, 8)
    spread = ranges.reshape(-1, 1, 1, 1) / 127
    factor = fold_factor(layer.norm).numpy().reshape(-1, 1, 1, 1)
    assert layer.rounded_weight().numpy() * factor == pytest.approx(
        integers * spread, rel=1e-4, abs=1e-7
    )
    assert np.abs(integers).max() == 127 and (np.abs(folded) > ranges.reshape(-1, 1, 1, 1)).any()


@pytest.mark.parametrize("kind", ["channel_wise_abs_max", "abs_max"])
def test_learned_weight_ranges_start_at_the_observed_ones(kind: str) -> None:
    learned = ranges_of(net(weight_preprocess_type="LSQ", weight_quantize_type=kind))
    observed = ranges_of(net(weight_quantize_type=kind))
    for name, scales in learned.items():
        assert scales.weight_ranges == pytest.approx(observed[name].weight_ranges, rel=1e-5)


@pytest.mark.parametrize(("method", "rate"), [("PACT", 1e-4), ("LSQ", 0.0)])
def test_optimizer_trains_the_ranges(method: str, rate: float, fresh_config: Any) -> None:
    """ppdet's builder finds them, and their own decay wins over that of the weights."""
    from ppdet.optimizer import OptimizerBuilder

    config = {"activation_preprocess_type": method}
    model = net(**config, **({"weight_preprocess_type": "LSQ"} if method == "LSQ" else {}))
    learned = {n: p for n, p in model.named_parameters() if "activation" in n or "weights" in n}
    assert len(learned) == (2 if method == "PACT" else 4)
    builder = OptimizerBuilder(
        regularizer={"type": "L2", "factor": 0.5}, optimizer={"type": "Momentum", "momentum": 0.0}
    )
    optimizer = builder(0.1, model)
    before = {n: p.numpy().copy() for n, p in learned.items()}
    loss = model(paddle.randn([2, 3, 6, 6]) * 4).square().sum()
    loss.backward()
    gradients = {n: p.grad.numpy().copy() for n, p in learned.items()}
    optimizer.step()
    for name, parameter in learned.items():
        decayed = gradients[name] + rate * before[name]
        assert_same_sums(parameter.numpy(), before[name] - 0.1 * decayed, what=name)
        assert np.abs(gradients[name]).max() > 0.0


def test_names_are_the_same_in_every_model() -> None:
    """The state of an optimizer is stored under them."""
    config = {"activation_preprocess_type": "LSQ", "weight_preprocess_type": "LSQ"}
    names = [[p.name for p in net(**config).parameters()] for _ in range(2)]
    assert names[0] == names[1] and len(set(names[0])) == len(names[0])
    assert "conv2d_0.w_0.input_range" in names[0] and "conv2d_0.w_0.weight_step" in names[0]
