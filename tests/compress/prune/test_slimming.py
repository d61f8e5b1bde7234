"""Which scales are penalized, by how much, and that nothing else changes."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import paddle
import pytest
from paddle.regularizer import L2Decay
from paddle.utils import unique_name

from slim_det.compress.prune.slimming import Slim, Sparsity, SparsityPenalty, near_zero
from slim_det.compress.steps import attach_step, step_of, steps_of
from slim_det.compress.strategy import Context
from slim_det.core.errors import ConfigError, LayerError
from slim_det.training import checkpoint
from tests.support import fill_with

SCALES = np.array([0.5, -0.25, 0.0, 2.0], np.float32)
SIGNS = np.array([1.0, -1.0, 0.0, 1.0], np.float32)


class Detector(paddle.nn.Layer):
    """A stem with batch norm, a depthwise one, a residual addition, a head that is the output."""

    def __init__(self, decay: L2Decay | None = None) -> None:
        super().__init__()
        nn, norm = paddle.nn, paddle.ParamAttr(regularizer=decay)
        self.stem = nn.Sequential(
            nn.Conv2D(3, 4, 3, padding=1, bias_attr=False), nn.BatchNorm2D(4, weight_attr=norm)
        )
        self.separable = nn.Sequential(nn.Conv2D(4, 4, 3, padding=1, groups=4), nn.BatchNorm2D(4))
        self.residual = nn.Sequential(nn.Conv2D(4, 4, 1), nn.BatchNorm2D(4))
        self.bare = nn.Conv2D(4, 6, 1)
        self.head = nn.Sequential(nn.Conv2D(6, 2, 1), nn.BatchNorm2D(2))

    def forward(self, inputs: dict[str, paddle.Tensor]) -> paddle.Tensor:
        x = paddle.nn.functional.relu(self.stem(inputs["image"]))
        x = x + self.residual(self.separable(x))
        return self.head(self.bare(x))


def detector(decay: L2Decay | None = None) -> Detector:
    """Always the same weights; the scales of the stem are `SCALES`."""
    paddle.seed(0)
    with unique_name.guard():
        net = Detector(decay)
    fill_with(net, {"stem.1.weight": SCALES})
    return net


def momentum(net: Detector, **settings: Any) -> paddle.optimizer.Optimizer:
    """Without momentum a step is the rate times what the optimizer adds up: here with rate 1."""
    given = {"learning_rate": 1.0, "momentum": 0.0, "parameters": net.parameters(), **settings}
    return paddle.optimizer.Momentum(**given)


class Training:
    """Trains as ppdet's Trainer does, on images that depend on the epoch alone."""

    def __init__(self, net: Detector, optimizer: Any, penalized: bool = True) -> None:
        self.model, self.optimizer, self.cfg = net, optimizer, SimpleNamespace()
        self.hooks = [SparsityPenalty(self)] if penalized else []
        self.losses: list[float] = []
        self.gradients: list[dict[str, np.ndarray]] = []

    def run(self, *epochs: int, gain: float = 1.0) -> None:
        status: dict[str, Any] = {}
        self._tell("on_train_begin", status)
        for epoch in epochs:
            status.update(mode="train", epoch_id=epoch)
            self.model.train()
            rng = np.random.default_rng(epoch)
            image = rng.normal(size=(2, 3, 8, 8)).astype("float32")
            loss = gain * self.model({"image": paddle.to_tensor(image)}).square().mean()
            loss.backward()
            self.losses.append(loss.item())
            self.gradients.append(
                {n: p.grad.numpy() for n, p in self.model.named_parameters() if p.grad is not None}
            )
            with unique_name.guard():  # its slots are numbered as in a process of its own
                self.optimizer.step()
            self.optimizer.clear_grad()
            self._tell("on_epoch_end", status)
        self._tell("on_train_end", status)

    def _tell(self, moment: str, status: dict[str, Any]) -> None:
        for hook in self.hooks:
            getattr(hook, moment)(status)


def values(net: Detector) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in net.state_dict().items()}


def differing(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> list[str]:
    assert left.keys() == right.keys()
    return [name for name in left if not np.array_equal(left[name], right[name])]


def with_penalty(weight: float, net: Detector, *scales: str) -> Detector:
    attach_step(net, Sparsity(weight, list(scales or ("stem.1.weight",))))
    return net


def test_the_penalty_is_the_weight_times_the_sign() -> None:
    """With gradients of zero, the step is the penalty alone, and a scale of zero stays."""
    net = with_penalty(0.125, detector())
    before = values(net)
    Training(net, momentum(net)).run(0, gain=0.0)
    after = values(net)
    assert (before["stem.1.weight"] - after["stem.1.weight"]).tolist() == (0.125 * SIGNS).tolist()
    moved = differing(before, after)
    assert {name for name in moved if "._" not in name} == {"stem.1.weight"}


def test_losses_gradients_and_other_parameters_are_those_of_the_detector() -> None:
    plain, net = detector(), with_penalty(0.125, detector())
    first, second = Training(plain, momentum(plain), penalized=False), Training(net, momentum(net))
    first.run(0)
    second.run(0)
    assert first.losses == second.losses and first.losses[0] > 0.0
    assert differing(first.gradients[0], second.gradients[0]) == []
    assert differing(values(plain), values(net)) == ["stem.1.weight"]
    extra = values(plain)["stem.1.weight"] - values(net)["stem.1.weight"]
    np.testing.assert_allclose(extra, 0.125 * SIGNS, rtol=0, atol=1e-6)


HALF = L2Decay(0.5)


@pytest.mark.parametrize("kind", [paddle.optimizer.Momentum, paddle.optimizer.SGD])
@pytest.mark.parametrize(
    ("own", "common", "decay"),
    [
        (None, None, 0.0),
        (HALF, None, 0.5),
        (None, HALF, 0.5),
        (L2Decay(0.0), HALF, 0.0),  # that of the parameter wins, as without the penalty
    ],
)
def test_the_weight_decay_of_a_scale_stays(
    kind: type[paddle.optimizer.Optimizer], own: Any, common: Any, decay: float
) -> None:
    """Whether the model or the optimizer sets it."""
    net = with_penalty(0.125, detector(own))
    settings = {"learning_rate": 1.0, "parameters": net.parameters(), "weight_decay": common}
    settings.update({"momentum": 0.0} if kind is paddle.optimizer.Momentum else {})
    Training(net, kind(**settings)).run(0, gain=0.0)
    expected = SCALES - 0.125 * SIGNS - decay * SCALES
    np.testing.assert_array_equal(values(net)["stem.1.weight"], expected)


@pytest.mark.parametrize("decay", [0.5, 0.0])
def test_parameter_groups_do_not_replace_the_penalty(decay: float) -> None:
    """An optimizer with groups sets the regularizers of all parameters when it is built."""
    net = with_penalty(0.125, detector(L2Decay(0.25)))
    rest = [p for p in net.parameters() if p is not net.stem[1].weight]
    groups = [{"params": rest}, {"params": [net.stem[1].weight], "weight_decay": decay}]
    optimizer = momentum(net, parameters=groups, weight_decay=0.75)
    Training(net, optimizer).run(0, gain=0.0)
    expected = SCALES - 0.125 * SIGNS - decay * SCALES
    np.testing.assert_array_equal(values(net)["stem.1.weight"], expected)


def test_a_decoupled_weight_decay_stays() -> None:
    """`AdamW` has its own, which is no regularizer: with the penalty its steps only gain a sign."""
    net = with_penalty(0.125, detector())
    optimizer = paddle.optimizer.AdamW(0.5, parameters=net.parameters(), weight_decay=0.25)
    Training(net, optimizer).run(0, gain=0.0)
    # Adam's first step is the rate times the sign of the gradient; the decay is rate times 0.25.
    expected = SCALES * (1 - 0.5 * 0.25) - 0.5 * SIGNS
    np.testing.assert_allclose(values(net)["stem.1.weight"], expected, rtol=0, atol=1e-6)


def test_weight_zero_is_plain_training() -> None:
    """Bit for bit, with the weight decay that the optimizer fuses into its own step."""
    settings = {"weight_decay": L2Decay(0.3), "momentum": 0.9, "learning_rate": 0.1}
    plain, net = detector(L2Decay(0.7)), with_penalty(0.0, detector(L2Decay(0.7)))
    Training(plain, momentum(plain, **settings), penalized=False).run(0, 1, 2)
    Training(net, momentum(net, **settings)).run(0, 1, 2)
    assert differing(values(plain), values(net)) == []


def test_parameters_are_left_as_they_were() -> None:
    """A model that is trained again, without the penalty, is trained without it."""
    net = with_penalty(0.125, detector(L2Decay(0.5)))
    before = net.stem[1].weight.regularizer
    for epoch in range(2):
        Training(net, momentum(net)).run(epoch)
        assert net.stem[1].weight.regularizer is before


def test_a_resumed_training_ends_at_the_same_weights(tmp_path: Path) -> None:
    """Loading a checkpoint keeps the penalty, and the hook sees the resumed scales."""
    settings = {"learning_rate": 0.1, "momentum": 0.9}
    straight, first, second = (with_penalty(0.5, detector()) for _ in range(3))
    Training(straight, momentum(straight, **settings)).run(0, 1)
    training = Training(first, momentum(first, **settings))
    training.run(0)
    checkpoint.save(tmp_path / "0", first.state_dict(), training.optimizer, 1, steps_of(first))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.pdopt", "0.pdparams"]
    training = Training(second, momentum(second, **settings))
    assert checkpoint.resume(second, tmp_path / "0", training.optimizer) == 1
    training.run(1)
    assert differing(values(straight), values(second)) == []
    plain = detector()
    Training(plain, momentum(plain, **settings), penalized=False).run(0, 1)
    assert differing(values(straight), values(plain)) != []


def test_scales_near_zero_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    """After each epoch, by the largest of each layer."""
    net = with_penalty(0.0, detector(), "stem.1.weight", "residual.1.weight")
    fill_with(net, {"residual.1.weight": [100.0, -0.5, 1.5, -2.0]})
    with caplog.at_level(logging.INFO, "slim_det"):
        Training(net, momentum(net)).run(3, gain=0.0)
    counted = "2 of 8 batch norm scales are at most 1 % of their layer's largest"
    assert [record.getMessage() for record in caplog.records] == [f"epoch 3: {counted}"]


@pytest.mark.parametrize(
    ("scale", "few"),
    [([1.0], 0), ([1.0, 0.0], 1), ([-1.0, 0.009, -0.009, 0.011], 2), ([0.0, 0.0], 2)],
)
def test_near_zero_is_relative_to_the_layer(scale: list[float], few: int) -> None:
    assert near_zero(np.array(scale)) == few


def test_a_model_without_penalized_scales_is_refused() -> None:
    with pytest.raises(ConfigError, match="no scales are penalized; 'slim' has to name Slim"):
        Training(detector(), None)


def applied(net: Detector, **settings: Any) -> Sparsity:
    assert Slim(**settings)(net, Context({}, (16, 16))) is net
    step = step_of(net, Sparsity)
    assert step is not None
    return step


@pytest.mark.parametrize(
    ("params", "scales"),
    [
        (None, ["stem.1.weight", "residual.1.weight"]),  # coupled by the addition
        ("all", ["stem.1.weight", "residual.1.weight"]),
        (["stem.0"], ["stem.1.weight", "residual.1.weight"]),
        (["stem.*", "residual.0"], ["stem.1.weight", "residual.1.weight"]),
    ],
)
def test_default_are_batch_norms_behind_layers_that_can_be_pruned(
    params: Any, scales: list[str]
) -> None:
    """Not that of the depthwise layer, which `bn_scale` does not read, nor that of the output."""
    assert applied(detector(), params=params).scales == scales


def test_scales_that_are_not_trained_are_left_out() -> None:
    net = detector()
    net.residual[1].weight.stop_gradient = True
    assert applied(net).scales == ["stem.1.weight"]


@pytest.mark.parametrize("given", [0.25, "25e-2"])
def test_the_step_changes_nothing_in_the_model(given: Any) -> None:
    """It needs no file either; YAML reads 25e-2 as text."""
    net = detector()
    net.train()
    before = values(net)
    step = applied(net, sparsity=given)
    assert step.weight == 0.25 and not step.changes_model and not step.has_file
    assert differing(before, values(net)) == [] and net.training


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (["bare"], "Slim.params: 'bare' has no batch norm directly behind it"),
        (["head.0"], "'head.0' cannot be cut: it is an output of the model"),
        (["stem.0", "bar"], "unknown layer 'bar'; did you mean 'bare'?"),
    ],
)
def test_mistakes_in_names(params: list[str], message: str) -> None:
    net = detector()
    with pytest.raises(LayerError) as caught:
        Slim(params=params)(net, Context({}, (16, 16)))
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert steps_of(net) == []


@pytest.mark.parametrize("value", [-1e-9, "many", None, True, [0.1], float("nan"), float("inf")])
def test_mistakes_in_the_weight(value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        Slim(sparsity=value)
    assert str(caught.value) == f"Slim.sparsity: {value!r} is not valid; expected a number >= 0"


@pytest.mark.parametrize("value", [[], 3, {"a": 1}])
def test_mistakes_in_the_layers(value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        Slim(params=value)
    assert str(caught.value) == f"Slim.params: {value!r} is not valid; expected a list of layers"
