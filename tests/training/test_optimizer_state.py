"""Optimizer state of a resumed run, with slots set by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from paddle.utils import unique_name

from slim_det.compress.prune.plan import Plan, apply_plan
from slim_det.compress.tensors import tensor_shapes
from slim_det.core.errors import WeightsError
from slim_det.training.optimizer_state import load_optimizer

KEPT = np.array([1, 3])

OPTIMIZERS: dict[str, Callable[..., paddle.optimizer.Optimizer]] = {
    "Momentum": lambda p: paddle.optimizer.Momentum(0.1, 0.9, parameters=p),
    "Adam": lambda p: paddle.optimizer.Adam(0.1, parameters=p),
    "RMSProp": lambda p: paddle.optimizer.RMSProp(0.1, momentum=0.9, centered=True, parameters=p),
    "SGD": lambda p: paddle.optimizer.SGD(0.1, parameters=p),
}


class Net(paddle.nn.Layer):
    """Two layers, 3 to 4 to 2; the second name begins like the first in ppdet's numbering."""

    def __init__(self) -> None:
        super().__init__()
        self.first = paddle.nn.Linear(3, 4)
        self.second = paddle.nn.Linear(4, 2)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return self.second(paddle.nn.functional.relu(self.first(x)))


def make_net() -> Net:
    with unique_name.guard():
        return Net()


def pruned(net: Net) -> Net:
    slices = {"first.weight": {1: KEPT}, "first.bias": {0: KEPT}, "second.weight": {0: KEPT}}
    apply_plan(net, Plan("Net", tensor_shapes(net), (32, 32), {}, {}, {}, slices))
    return net


def step(net: Net, optimizer: paddle.optimizer.Optimizer) -> None:
    net(paddle.ones([5, 3])).sum().backward()
    optimizer.step()
    optimizer.clear_grad()


def stepped(kind: str, net: Net) -> paddle.optimizer.Optimizer:
    """An optimizer after one step, its slots numbered as in a fresh process."""
    with unique_name.guard():
        optimizer = OPTIMIZERS[kind](net.parameters())
        step(net, optimizer)
    return optimizer


def make_slots(optimizer: paddle.optimizer.Optimizer, net: Net) -> None:
    """What the first step begins with: slots, filled from the state that was loaded."""
    block = paddle.static.default_main_program().global_block()
    optimizer._create_accumulators(block, net.parameters())


def counted(state: dict[str, Any]) -> dict[str, Any]:
    """The state with every slot set to 0, 1, 2, ..., so that each number tells its place."""
    return {
        key: paddle.arange(value.size, dtype="float32").reshape(value.shape)
        if isinstance(value, paddle.Tensor)
        else value
        for key, value in state.items()
    }


def write(path: Path, state: dict[str, Any], **more: Any) -> Path:
    paddle.save({**state, **more}, str(path))
    return path


@pytest.mark.parametrize(("kind", "slots"), [("Momentum", 1), ("Adam", 2), ("RMSProp", 3)])
def test_slots_are_sliced_like_their_parameters(tmp_path: Path, kind: str, slots: int) -> None:
    """Every slot holds the numbers of the kept places, and training continues."""
    state = counted(stepped(kind, make_net()).state_dict())
    path = write(tmp_path / "x.pdopt", state, last_epoch=5)
    net = pruned(make_net())
    with unique_name.guard():
        optimizer = OPTIMIZERS[kind](net.parameters())
        assert load_optimizer(net, path, optimizer) == 5
        before = net.first.weight.numpy()
        make_slots(optimizer, net)
        loaded = optimizer.state_dict()
        complete = np.arange(12).reshape(3, 4)
        found = [v.numpy() for k, v in loaded.items() if "linear_0.w_0" in k and v.ndim == 2]
        assert len(found) == slots
        assert all(np.array_equal(value, complete[:, KEPT]) for value in found)
        rows = [v.numpy() for k, v in loaded.items() if "linear_1.w_0" in k and v.ndim == 2]
        assert all(np.array_equal(v, np.arange(8).reshape(4, 2)[KEPT]) for v in rows)
        step(net, optimizer)
    assert not np.array_equal(net.first.weight.numpy(), before)


def test_unpruned_model_takes_its_state_as_it_is(tmp_path: Path) -> None:
    state = counted(stepped("Momentum", make_net()).state_dict())
    net = make_net()
    with unique_name.guard():
        optimizer = OPTIMIZERS["Momentum"](net.parameters())
        load_optimizer(net, write(tmp_path / "x.pdopt", state), optimizer)
        make_slots(optimizer, net)
        loaded = optimizer.state_dict()
    for key, value in state.items():
        if isinstance(value, paddle.Tensor):
            assert np.array_equal(loaded[key].numpy(), value.numpy()), key


def test_optimizer_without_slots(tmp_path: Path) -> None:
    """SGD keeps nothing; there is nothing to miss."""
    state = stepped("SGD", make_net()).state_dict()
    net = pruned(make_net())
    path = write(tmp_path / "x.pdopt", state, last_epoch=2)
    assert load_optimizer(net, path, OPTIMIZERS["SGD"](net.parameters())) == 2


def test_learning_rate_goes_on(tmp_path: Path) -> None:
    schedule = paddle.optimizer.lr.StepDecay(0.5, step_size=2, gamma=0.1)
    optimizer = paddle.optimizer.SGD(schedule, parameters=make_net().parameters())
    schedule.step()
    schedule.step()
    path = write(tmp_path / "x.pdopt", optimizer.state_dict())
    net = make_net()
    again = paddle.optimizer.lr.StepDecay(0.5, step_size=2, gamma=0.1)
    load_optimizer(net, path, paddle.optimizer.SGD(again, parameters=net.parameters()))
    assert again.last_epoch == 2 and again() == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.update(conv2d_0_velocity_0=paddle.ones([2])), "belongs to no parameter"),
        (
            lambda s: s.update({"linear_0.w_0_velocity_0": paddle.ones([9, 9])}),
            "'linear_0.w_0_velocity_0' is [9, 9], its parameter 'first.weight' is [3, 2]",
        ),
        (lambda s: s.pop("linear_1.b_0_velocity_0"), "no state for 'second.bias' (1 in all)"),
    ],
)
def test_state_of_another_model(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], said: str
) -> None:
    state = dict(stepped("Momentum", make_net()).state_dict())
    change(state)
    net = pruned(make_net())
    optimizer = OPTIMIZERS["Momentum"](net.parameters())
    with pytest.raises(WeightsError) as caught:
        load_optimizer(net, write(tmp_path / "x.pdopt", state), optimizer)
    assert said in str(caught.value)


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    net = make_net()
    optimizer = OPTIMIZERS["SGD"](net.parameters())
    with pytest.raises(WeightsError, match="it is needed to resume"):
        load_optimizer(net, tmp_path / "x.pdopt", optimizer)
    (tmp_path / "x.pdopt").write_bytes(b"cut")
    with pytest.raises(WeightsError, match="cannot be read"):
        load_optimizer(net, tmp_path / "x.pdopt", optimizer)
