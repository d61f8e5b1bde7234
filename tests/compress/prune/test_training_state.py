"""A network that loses channels while it is trained, against one that starts with what is left."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
import pytest
from paddle.utils import unique_name

from slim_det.compress.prune.plan import apply_plan
from slim_det.compress.prune.training_state import slice_training_state, slots_by_parameter
from slim_det.compress.tensors import tensor_shapes
from slim_det.core.errors import TrainingError
from tests.compress.prune.small_net import SmallNet, small_plan

OPTIMIZERS: dict[str, tuple[Any, dict[str, Any], int]] = {
    "Momentum": (paddle.optimizer.Momentum, {"momentum": 0.9, "weight_decay": 5e-4}, 1),
    "RMSProp": (paddle.optimizer.RMSProp, {"momentum": 0.5}, 3),
    "Adam": (paddle.optimizer.Adam, {}, 2),
    "AdamW": (paddle.optimizer.AdamW, {"weight_decay": 0.1}, 2),
    "SGD": (paddle.optimizer.SGD, {}, 0),
}
"""Name -> class, its settings, slots that it keeps of a parameter."""


def made(name: str) -> tuple[SmallNet, Any]:
    """The same network each time, with an optimizer."""
    paddle.seed(3)
    kind, settings, _ = OPTIMIZERS[name]
    with unique_name.guard():
        net = SmallNet()
        clip = paddle.nn.ClipGradByGlobalNorm(5.0)
        rate = paddle.optimizer.lr.StepDecay(0.02, step_size=2)
        optimizer = kind(rate, parameters=net.parameters(), grad_clip=clip, **settings)
    return net, optimizer


def train(net: SmallNet, optimizer: Any, images: list[int]) -> None:
    """One step per image, in the order of ppdet's Trainer."""
    net.train()
    for seed in images:
        image = np.random.default_rng(seed).normal(size=(2, 3, 8, 8)).astype("float32")
        (net(paddle.to_tensor(image)) - 1.0).square().mean().backward()
        with unique_name.guard():  # slots are numbered from zero, as in a process of their own
            optimizer.step()
        optimizer._learning_rate.step()
        optimizer.clear_grad()


def cut_in_training(net: SmallNet, optimizer: Any, average: dict[str, Any] | None = None) -> None:
    slots, plan = slots_by_parameter(net, optimizer), small_plan(net)
    apply_plan(net, plan)
    slice_training_state(net, plan.slices, slots, average or {})


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_goes_on_as_if_it_had_started_with_what_is_left(name: str) -> None:
    """To the last bit: the other network is built anew, cut, and given sliced weights and slots."""
    net, optimizer = made(name)
    train(net, optimizer, [1, 2, 3])
    plan = small_plan(net)
    names = {param.name: key for key, param in net.named_parameters()}
    weights = {key: param.numpy() for key, param in net.named_parameters()}
    state = {k: v.numpy() if hasattr(v, "numpy") else v for k, v in optimizer.state_dict().items()}
    state["LR_Scheduler"] = dict(state["LR_Scheduler"])

    objects = dict(net.named_parameters())
    cut_in_training(net, optimizer)
    assert all(param is objects[key] for key, param in net.named_parameters())
    just_cut = {key: param.numpy() for key, param in net.named_parameters()}
    train(net, optimizer, [4, 5, 6])

    other, fresh = made(name)
    apply_plan(other, plan)
    for key, param in other.named_parameters():
        param.set_value(plan.slice(key, weights[key]))
    for key, value in state.items():
        owner = next((names[n] for n in names if key.startswith(f"{n}_")), None)
        if owner and value.shape == plan.tensors[owner]:
            state[key] = plan.slice(owner, value)
    fresh.set_state_dict({k: _tensor(v) for k, v in state.items()})
    train(other, fresh, [4, 5, 6])

    for (key, left), (_, right) in zip(net.named_parameters(), other.named_parameters()):
        np.testing.assert_array_equal(left.numpy(), right.numpy(), key)
        trained = not left.stop_gradient or "bn." in key
        assert trained == (left.numpy() != just_cut[key]).any(), f"{key} has to learn"
    left_state, right_state = optimizer.state_dict(), fresh.state_dict()
    assert left_state.keys() == right_state.keys()
    for key, value in left_state.items():
        if isinstance(value, paddle.Tensor):
            np.testing.assert_array_equal(value.numpy(), right_state[key].numpy(), key)


def _tensor(value: Any) -> Any:
    return paddle.to_tensor(value) if isinstance(value, np.ndarray) else value


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_slots_of_every_trained_parameter_are_found(name: str) -> None:
    net, optimizer = made(name)
    assert slots_by_parameter(net, optimizer) == {}, "before the first step there are none"
    train(net, optimizer, [1])
    found = slots_by_parameter(net, optimizer)
    count = OPTIMIZERS[name][2]
    trained = {key for key, param in net.named_parameters() if not param.stop_gradient}
    assert set(found) == (trained if count else set())
    assert {len(slots) for slots in found.values()} <= {count}


def test_state_that_was_loaded_and_not_used_yet() -> None:
    """A training resumed in the very epoch in which a step is due."""
    net, optimizer = made("Momentum")
    train(net, optimizer, [1, 2])
    state = {k: _copied(v) for k, v in optimizer.state_dict().items()}
    weights = {key: _copied(value) for key, value in net.state_dict().items()}
    cut_in_training(net, optimizer)
    train(net, optimizer, [3])
    resumed, fresh = made("Momentum")
    resumed.set_state_dict(weights)
    fresh.set_state_dict(state)
    cut_in_training(resumed, fresh)
    train(resumed, fresh, [3])
    for (key, left), (_, right) in zip(net.named_parameters(), resumed.named_parameters()):
        np.testing.assert_array_equal(left.numpy(), right.numpy(), key)


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, paddle.Tensor) else dict(value)


def test_a_moving_average_is_sliced_and_what_is_the_models_own_is_not_sliced_twice() -> None:
    net, optimizer = made("SGD")
    average = {key: paddle.full(p.shape, 2.0) for key, p in net.named_parameters()}
    average["inner.weight"] = paddle.arange(24, dtype="float32").reshape([6, 4, 1, 1])
    average["stem.weight"] = net.stem.weight  # as entries of ppdet's black list
    cut_in_training(net, optimizer, average)
    assert {key: tuple(value.shape) for key, value in average.items()} == tensor_shapes(net)
    rows = [[4, 7], [8, 11], [20, 23]]
    assert average["inner.weight"].numpy()[:, :, 0, 0].tolist() == rows
    assert average["stem.weight"] is net.stem.weight


def test_what_is_not_cut_stays() -> None:
    net, optimizer = made("Momentum")
    train(net, optimizer, [1])
    kept = net.head.bias
    slots = slots_by_parameter(net, optimizer)
    before = kept.numpy(), slots["head.bias"][0].numpy()
    cut_in_training(net, optimizer)
    np.testing.assert_array_equal(kept.numpy(), before[0])
    np.testing.assert_array_equal(slots["head.bias"][0].numpy(), before[1])


def test_a_slot_of_another_shape_is_refused() -> None:
    net, optimizer = made("Momentum")
    train(net, optimizer, [1])
    slot = slots_by_parameter(net, optimizer)["inner.weight"][0]
    slot.get_tensor().set(np.zeros((6, 4), "float32"), paddle.CPUPlace())
    with pytest.raises(
        TrainingError, match=r"'inner.weight' cannot be cut in training: .*\[6, 4\]"
    ):
        slots_by_parameter(net, optimizer)


def test_a_gradient_of_the_old_shape_is_gone() -> None:
    """`clear_grad` keeps zeros, which a step without this layer would hand to the optimizer."""
    net, optimizer = made("Momentum")
    train(net, optimizer, [1])
    assert net.inner.weight.grad is not None
    cut_in_training(net, optimizer)
    assert net.inner.weight.grad is None
    net.head(net.stem(paddle.ones([1, 3, 8, 8]))).sum().backward()
    before = net.inner.weight.numpy()
    optimizer.step()
    np.testing.assert_array_equal(net.inner.weight.numpy(), before)
