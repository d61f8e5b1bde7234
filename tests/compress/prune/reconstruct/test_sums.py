"""Residual sums: which layer makes good the error of the other side, and what it has to give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import paddle
import pytest
from paddle import nn

from slim_det.compress.prune.plan import apply_plan
from slim_det.compress.prune.reconstruct import reconstruction, samples
from slim_det.compress.prune.reconstruct.layers import changed_by
from slim_det.compress.prune.reconstruct.sums import Sum, sums_behind, wanted_outputs
from tests.compress.prune.reconstruct.nets import Prepared, drawn_images, outputs, squared_error


class Residual(nn.Layer):
    """A block of two branches that read `first`, whose channels are cut."""

    def __init__(self, norm: bool = True, relu: bool = False) -> None:
        super().__init__()
        self.first = nn.Conv2D(3, 8, 3, padding=1)
        self.shortcut = nn.Conv2D(8, 4, 1)
        self.branch = nn.Conv2D(8, 4, 1, bias_attr=None if not norm else False)
        self.norm = nn.BatchNorm2D(4) if norm else nn.Identity()
        self.relu = nn.ReLU() if relu else nn.Identity()
        self.last = nn.Conv2D(4, 2, 1)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        found = nn.functional.relu(self.first(x))
        shortcut = nn.functional.relu(self.shortcut(found))
        return self.last(shortcut + self.relu(self.norm(self.branch(found))))


def sums_of(net: nn.Layer) -> tuple[dict[str, Sum], Prepared]:
    paddle.seed(0)
    prepared = Prepared(net)
    units = prepared.groups.groups["first"].units
    program = prepared.program()
    changed = changed_by(program, prepared.parameters, prepared.groups, units)
    return sums_behind(program, changed.layers, changed.variables), prepared


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("relu", [True, False])
def test_the_last_branch_has_the_sum(norm: bool, relu: bool) -> None:
    found, prepared = sums_of(Residual(norm, relu))
    assert list(found) == ["branch.weight"]
    program, one = prepared.program(), found["branch.weight"]
    assert (one.branch.norm is not None, one.branch.clips) == (norm, relu)
    (addition,) = [op for op in program.ops if one.total in op.output_arg_names]
    assert addition.type == "elementwise_add" and one.other in addition.input_arg_names


def test_other_functions_in_between_have_no_sum() -> None:
    """Its errors count a tenth below zero, which least squares would not know."""
    net = Residual()
    net.relu = nn.LeakyReLU(0.1)
    assert sums_of(net)[0] == {}


def test_an_unchanged_side_has_no_error() -> None:
    class Plain(Residual):
        def forward(self, x: paddle.Tensor) -> paddle.Tensor:
            found = nn.functional.relu(self.first(x))
            return self.last(x[:, :1] * paddle.ones([1, 4, 1, 1]) + self.norm(self.branch(found)))

    assert sums_of(Plain())[0] == {}


def wanted(net: Residual, total: list[float], other: list[float], former: list[float]) -> list:
    found, prepared = sums_of(net)
    program = prepared.program()
    rows = (np.array([values], np.float32) for values in (total, other, former))
    return wanted_outputs(program, found["branch.weight"], *rows)[0].tolist()


def test_what_is_wanted_is_the_difference() -> None:
    net = Residual(norm=False)
    net.branch.bias.set_value(np.array([0, 0, 1, 2], np.float32))
    found = wanted(net, [5, 4, 3, 2], [1, 1, 1, 1], [9, 9, 9, 9])
    assert found == [4, 3, 1, -1]


def test_batch_norm_is_undone() -> None:
    """y = (x - 1) * 2 / sqrt(4) + 3, which is x + 2, without epsilon."""
    net = Residual()
    for name, value in (("weight", 2), ("bias", 3), ("_mean", 1), ("_variance", 4)):
        getattr(net.norm, name).set_value(np.full(4, value, np.float32))
    found = wanted(net, [5, 4, 3, 2], [1, 1, 1, 1], [9, 9, 9, 9])
    assert found == pytest.approx([2, 1, 0, -1], abs=1e-4)


def test_channels_that_batch_norm_removes_keep_their_former_outputs() -> None:
    net = Residual()
    net.norm.weight.set_value(np.array([1, 0, 1, 1e-9], np.float32))
    found = wanted(net, [5, 4, 3, 2], [1, 1, 1, 1], [7, 8, 9, 10])
    assert found[1] == 8 and found[3] == 10
    assert found[0] == pytest.approx(4, abs=1e-4)


def test_behind_a_relu_any_negative_number_will_do() -> None:
    """The former one if it was negative, otherwise zero."""
    found = wanted(Residual(norm=False, relu=True), [5, 1, 1, 1], [1, 2, 2, 1], [9, -7, 7, -3])
    assert found == [4, -7, 0, -3]


@pytest.mark.parametrize("relu", [True, False])
def test_the_output_is_nearer_than_with_each_branch_for_itself(
    relu: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = drawn_images(20)

    def error(name: str) -> float:
        paddle.seed(3)
        net = Residual(relu=relu)
        net.branch = nn.Conv2D(8, 4, 5, padding=2)  # sees more than the side it makes good
        prepared = Prepared(net)
        before = outputs(prepared.net, images)
        (tmp_path / name).mkdir()
        prepared.cut_and_repaired({"first": 0.5}, images, tmp_path / name)
        return squared_error(before, outputs(prepared.net, images))

    together = error("together")
    monkeypatch.setattr(reconstruction, "sums_behind", lambda *_: {})
    alone = error("alone")
    assert together < 0.97 * alone  # measured: 0.90 and 0.93


def test_a_cut_model_has_its_own_width(tmp_path: Path) -> None:
    """The channels of the sum itself are cut as well."""
    images = drawn_images(10)
    paddle.seed(0)
    prepared = Prepared(Residual())
    before = outputs(prepared.net, images)
    ratios = {"first": 0.5, "shortcut": 0.5}
    plan, repair = prepared.cut_and_repaired(ratios, images, tmp_path)
    assert prepared.net.branch.weight.shape == [2, 4, 1, 1]
    assert all(layer.after <= layer.before for layer in repair.layers)
    repaired = squared_error(before, outputs(prepared.net, images))
    paddle.seed(0)
    only_cut = Residual()
    apply_plan(only_cut, plan)
    assert repaired < 0.5 * squared_error(before, outputs(only_cut, images))


class Behind(Residual):
    """A ReLU behind the sum, as in ResNet."""

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        found = nn.functional.relu(self.first(x))
        return nn.functional.relu(self.shortcut(found) + self.norm(self.branch(found)))


def test_limits_behind_a_sum() -> None:
    """Where the other side gives 2, the branch may give any number up to -2."""
    net = Behind(norm=False)
    net.branch.bias.set_value(np.array([0, 0, 0, 1], np.float32))
    found, prepared = sums_of(net)
    one = found["branch.weight"]
    limits = one.limits(prepared.program(), np.array([[2, -1, 0, 5]], np.float32))
    assert limits is not None
    assert limits.low.tolist() == [[-2, 1, 0, -6]] and np.isposinf(limits.high).all()


def test_what_a_relu_behind_the_sum_passes_is_nearer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = drawn_images(20)

    def error(name: str) -> float:
        paddle.seed(3)
        prepared = Prepared(Behind())
        before = outputs(prepared.net, images)
        (tmp_path / name).mkdir()
        prepared.cut_and_repaired({"first": 0.5}, images, tmp_path / name, positions=10**6)
        return squared_error(before, outputs(prepared.net, images))

    followed = error("followed")
    monkeypatch.setattr(samples, "ROUNDS", 0)
    assert followed < 0.97 * error("not followed")


def test_an_unchanged_side_behind_which_a_relu_clips() -> None:
    """It has no error, but what it gives decides what the ReLU passes."""

    class Block(nn.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.branch = nn.Conv2D(3, 8, 1), nn.Conv2D(8, 3, 1)

        def forward(self, x: paddle.Tensor) -> paddle.Tensor:
            x = nn.functional.relu(x)
            return nn.functional.relu(x + self.branch(nn.functional.relu(self.first(x))))

    found, prepared = sums_of(Block())
    one = found["branch.weight"]
    other = np.ones((1, 3), np.float32)
    limits = one.limits(prepared.program(), other)
    assert limits is not None and np.isneginf(limits.low).sum() == 0


def test_a_sum_without_an_activation_has_no_limits() -> None:
    found, prepared = sums_of(Residual())
    other = np.ones((2, 4), np.float32)
    assert found["branch.weight"].limits(prepared.program(), other) is None
