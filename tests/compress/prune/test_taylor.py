"""The criterion `taylor` on networks whose gradients are known, and what it leaves alone."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import paddle
import pytest

from slim_det.compress.prune import taylor
from slim_det.compress.prune.groups import ModelGroups, find_groups
from slim_det.compress.prune.plan import plan_of
from slim_det.compress.prune.pruner import Pruner
from slim_det.compress.prune.reconstruct.settings import Calibration
from slim_det.compress.prune.taylor import scores_on, taylor_scores
from slim_det.core.errors import ConfigError, LayerError
from slim_det.graph.trace import trace_detector
from slim_det.training.session import build_model
from tests.compress.prune.reconstruct.nets import values
from tests.support import fill_with, trace_plain

Forward = Callable[[Any, paddle.Tensor], paddle.Tensor]

HEAD = np.array([0.0, 2.0, 0.0]).reshape(1, 3, 1, 1)
"""The loss depends on the second of three channels only, and doubles it."""

A = np.array([[5, 5], [3, -1], [4, 4]]).reshape(3, 2, 1, 1)
B = np.array([[7, 1], [-2, 1], [1, 1]]).reshape(3, 2, 1, 1)


class Tiny(paddle.nn.Layer):
    """Named layers and what is done with them; the loss is the mean of the head's one output."""

    def __init__(self, forward: Forward, **layers: paddle.nn.Layer) -> None:
        super().__init__()
        self.function = forward
        for name, layer in layers.items():
            self.add_sublayer(name, layer)
        self.head = conv(3, 1)

    def forward(self, x: Any) -> Any:
        image = x["image"] if isinstance(x, dict) else x
        output = self.head(self.function(self, image))
        return {"loss": output.mean()} if self.training else output


def conv(inside: int, out: int, bias: bool = False, **settings: Any) -> paddle.nn.Conv2D:
    return paddle.nn.Conv2D(inside, out, 1, bias_attr=None if bias else False, **settings)


def norm(channels: int = 3) -> paddle.nn.BatchNorm2D:
    """In evaluation, it subtracts 3 from every channel, doubles it and adds 1."""
    layer = paddle.nn.BatchNorm2D(channels)
    fill_with(layer, {"weight": 2.0, "bias": 1.0})
    layer._mean.set_value(np.full(channels, 3.0, "float32"))
    layer._variance.set_value(np.full(channels, 1.0 - 1e-5, "float32"))
    return layer


def batch(*pixel: float) -> dict[str, paddle.Tensor]:
    """Two images of 2x2 pixels of one color."""
    color = np.array(pixel, "float32").reshape(1, -1, 1, 1)
    return {"image": paddle.to_tensor(np.tile(color, (2, 1, 2, 2)))}


def groups_of(net: Tiny) -> ModelGroups:
    return find_groups(net, trace_plain(net, 1, 2, 2, 2))


def scores(net: Tiny, *batches: dict[str, paddle.Tensor], name: str = "a") -> list[float]:
    """Scores of one group; the head is set first."""
    fill_with(net, {"head.weight": HEAD})
    return scores_on(net, groups_of(net), [name], batches)[name].tolist()


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [([(1, 2)], 2.0**2), ([(2, 2)], 8.0**2), ([(1, 2), (2, 2)], 2.0**2 + 8.0**2)],
)
def test_only_the_channel_that_the_loss_depends_on(
    pixels: list[tuple[int, int]], expected: float
) -> None:
    """3 * 1 - 2 = 1 and 3 * 2 - 2 = 4, doubled; squares are added over batches."""
    net = Tiny(lambda n, x: n.a(x), a=conv(2, 3))
    fill_with(net, {"a.weight": A})
    found = scores(net, *(batch(*pixel) for pixel in pixels))
    assert found == pytest.approx([0.0, expected, 0.0])


def test_a_bias_is_part_of_a_channel() -> None:
    """(1 + 0.5) * 2; also through an activation, which is not negative here."""
    net = Tiny(lambda n, x: paddle.nn.functional.relu(n.a(x)), a=conv(2, 3, bias=True))
    fill_with(net, {"a.weight": A, "a.bias": 0.5})
    assert scores(net, batch(1, 2)) == pytest.approx([0.0, 3.0**2, 0.0])


@pytest.mark.parametrize("bias", [False, True])
def test_the_gates_of_a_batch_norm(bias: bool) -> None:
    """Scale and shift alone, with the statistics as they are: (2 * (1 - 3) + 1) * 2.

    By the weights it would be 2 * 1 * 2, and with the statistics of the batch 1 * 2. A bias before
    the norm adds to its input only.
    """
    net = Tiny(lambda n, x: n.bn(n.a(x)), a=conv(2, 3, bias), bn=norm())
    fill_with(net, {"a.weight": A, **({"a.bias": 0.25} if bias else {})})
    expected = (2 * (1 + 0.25 * bias - 3) + 1) * 2
    assert scores(net, batch(1, 2)) == pytest.approx([0.0, expected**2, 0.0], rel=1e-5)


def test_gates_that_are_not_trained() -> None:
    """A frozen norm has a gradient as well, and stays frozen."""
    net = Tiny(lambda n, x: n.bn(n.a(x)), a=conv(2, 3), bn=norm())
    fill_with(net, {"a.weight": A})
    for parameter in net.parameters():
        parameter.stop_gradient = True
    assert scores(net, batch(1, 2)) == pytest.approx([0.0, 6.0**2, 0.0], rel=1e-5)
    assert all(parameter.stop_gradient for parameter in net.parameters())


def test_members_are_added_before_they_are_squared() -> None:
    """a gives 1 and b gives -2 + 2 * 2 + 0.25 = 2.25 in the second channel; signs count."""
    net = Tiny(lambda n, x: n.a(x) + n.b(x), a=conv(2, 3), b=conv(2, 3, bias=True))
    fill_with(net, {"a.weight": A, "b.weight": -B, "b.bias": [0, -0.25, 0]})
    b = -(-2 * 1 + 1 * 2) - 0.25
    assert scores(net, batch(1, 2)) == pytest.approx([0.0, (2 * (1 + b)) ** 2, 0.0])
    fill_with(net, {"b.weight": -A, "b.bias": 0.0})
    assert scores(net, batch(1, 2)) == pytest.approx([0.0, 0.0, 0.0]), "they cancel out"


def test_a_member_with_a_batch_norm_and_one_without() -> None:
    """-6 of the norm, as above, and 2 * 1 of the other."""
    net = Tiny(lambda n, x: n.bn(n.a(x)) + n.b(x), a=conv(2, 3), b=conv(2, 3), bn=norm())
    fill_with(net, {"a.weight": A, "b.weight": A})
    assert scores(net, batch(1, 2)) == pytest.approx([0.0, (-6.0 + 2.0) ** 2, 0.0], rel=1e-5)


def test_a_layer_that_is_used_twice_counts_once() -> None:
    """Its gradient is that of both uses: 1 + 2 * 1, doubled."""
    net = Tiny(lambda n, x: n.a(x) + n.a(2 * x), a=conv(2, 3))
    fill_with(net, {"a.weight": A})
    assert scores(net, batch(1, 2)) == pytest.approx([0.0, 6.0**2, 0.0])


def test_channels_of_a_grouped_convolution_that_are_one_unit() -> None:
    """Channels 0 and 3, 1 and 4, 2 and 5 go together; 10 of channel 1 and -4 of channel 4."""
    net = Tiny(lambda n, x: n.c(n.a(x)), a=conv(2, 6), c=conv(6, 6, groups=2))
    net.head = conv(6, 1)
    fill_with(net, {"a.weight": 0.0, "c.weight": 0.0, "head.weight": 1.0})
    weight, inner = np.zeros((6, 2, 1, 1)), np.zeros((6, 3, 1, 1))
    weight[1, 0], weight[4, 1] = 10.0, -2.0
    inner[0, 1], inner[5, 1] = 1.0, 1.0
    fill_with(net, {"a.weight": weight, "c.weight": inner})
    groups = groups_of(net)
    assert len(groups.groups["a"].units) == 3
    (found,) = scores_on(net, groups, ["a"], [batch(1, 2)]).values()
    assert found.tolist() == pytest.approx([0.0, (10.0 - 4.0) ** 2, 0.0])


def test_what_the_loss_does_not_depend_on() -> None:
    """A part that has no gradient scores zero."""
    net = Tiny(lambda n, x: n.a(x) + 0 * n.b(x).detach(), a=conv(2, 3), b=conv(2, 3))
    fill_with(net, {"a.weight": A, "b.weight": B})
    assert scores(net, batch(1, 2)) == pytest.approx([0.0, 4.0, 0.0])


def test_a_gradient_that_is_not_finite() -> None:
    net = Tiny(lambda n, x: n.a(x), a=conv(2, 3))
    with pytest.raises(LayerError, match=r"the gradient of 'a\.weight' is not finite"):
        scores(net, batch(float("nan"), 1))


class Noisy(Tiny):
    """With a random layer, and hooks as those of a teacher."""

    def __init__(self) -> None:
        super().__init__(
            lambda n, x: n.drop(n.bn(n.a(x))), a=conv(3, 3), bn=norm(), drop=paddle.nn.Dropout()
        )
        self.called: list[Any] = []
        self.register_forward_post_hook(lambda *_: self.called.append(_))


@pytest.fixture
def noisy(monkeypatch: pytest.MonkeyPatch) -> Noisy:
    """A network whose images are drawn, from all sources of random numbers."""

    def drawn(cfg: Any, most: int) -> tuple[int, Iterator[dict[str, paddle.Tensor]]]:
        draws = ([random.random(), *np.random.random(2)] for _ in range(most))
        return most, (batch(*pixel) for pixel in draws)

    monkeypatch.setattr(taylor, "labelled_batches", drawn)
    paddle.seed(3)
    return Noisy()


def found_by(net: Noisy, seed: int = 0, images: int = 4) -> list[float]:
    groups = find_groups(net, trace_plain(net, 1, 3, 2, 2))
    score = taylor_scores(net, groups, ["a"], {}, Calibration(images=images), seed)
    return score(groups.groups["a"], 1).tolist()


def test_the_seed_decides(noisy: Noisy) -> None:
    random.seed(1)
    first = found_by(noisy)
    paddle.rand([3])
    assert found_by(noisy) == first and np.ptp(first) > 0
    assert found_by(noisy, seed=1) != first != found_by(noisy, images=3)


def test_the_network_is_left_as_it_was(noisy: Noisy) -> None:
    """Weights, statistics, gradients, modes and hooks."""
    noisy.train()
    noisy.bn.eval()
    noisy(batch(1, 2, 3))["loss"].backward()
    before, calls = values(noisy), len(noisy.called)
    noisy.head.weight.clear_gradient(False)
    gradients = {n: p.grad.numpy() for n, p in noisy.named_parameters() if p.grad is not None}
    assert len(gradients) == 3
    found_by(noisy)
    for name, value in values(noisy).items():
        np.testing.assert_array_equal(value, before[name], name)
    modes = {name: layer.training for name, layer in noisy.named_sublayers(include_self=True)}
    assert [name for name, training in modes.items() if not training] == ["bn"]
    for name, parameter in noisy.named_parameters():
        if name in gradients:
            np.testing.assert_array_equal(parameter.grad.numpy(), gradients[name], name)
        else:
            assert parameter.grad is None, name
    assert len(noisy.called) == calls


def test_random_numbers_go_on_as_before(noisy: Noisy) -> None:
    drawn = []
    for step in (lambda: None, lambda: found_by(noisy)):
        random.seed(5)
        np.random.seed(5)
        paddle.seed(5)
        step()
        drawn.append([random.random(), np.random.random(), *paddle.rand([2]).tolist()])
    assert drawn[0] == drawn[1]


def test_images_without_labels() -> None:
    """Refused before anything is read; other criteria take them."""
    calibration = {"folder": "photos"}
    with pytest.raises(ConfigError, match=r"calibration\.folder: criterion 'taylor' needs labels"):
        Pruner("taylor", pruned_ratios=0.5, calibration=calibration)
    assert Pruner("elimination", pruned_ratios=0.5, calibration=calibration).needs_images


def test_the_lowest_scores_are_cut(tiny_cfg: Any) -> None:
    """A detector of ppdet on its own images, which are augmented in the same way each time."""
    name = "neck.yolo_block.2.conv_module.conv0"
    model = build_model(tiny_cfg)
    trace = trace_detector(model, (96, 96))
    groups = find_groups(model, trace)
    pruner = Pruner("taylor", pruned_ratios={name: 0.5}, seed=7, calibration={"images": 5})
    score = taylor_scores(model, groups, [name], tiny_cfg, pruner.calibration, 7)
    expected = score(groups.groups[name], 0)
    assert expected.min() >= 0 and np.count_nonzero(expected) > len(expected) // 2
    pruner.cut(model, trace, groups, cfg=tiny_cfg)
    half = np.sort(np.argsort(expected)[len(expected) // 2 :])
    assert plan_of(model).groups[name]["kept"] == half.tolist()
