"""The plan as a file, and what applying it changes and leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slim_det.compress.prune.plan import Plan, apply_plan, plan_of
from slim_det.compress.tensors import differing, fingerprint, summary, tensor_shapes
from slim_det.core.errors import PlanError
from tests.compress.prune.small_net import SmallNet, small_plan

NAMES = st.text("abcxyz._0", min_size=1, max_size=12)
FILE_PROPERTY = settings(
    max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Any valid plan."""
    shapes = st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple)
    tensors = draw(st.dictionaries(NAMES, shapes, max_size=5))
    slices = {}
    for name, shape in tensors.items():
        axes = draw(st.sets(st.integers(0, len(shape) - 1)))
        slices[name] = {
            axis: np.array(sorted(draw(st.sets(st.integers(0, shape[axis] - 1), min_size=1))))
            for axis in sorted(axes)
        }
    return Plan(
        architecture=draw(NAMES),
        tensors=tensors,
        image_size_hw=draw(st.tuples(st.integers(1, 2000), st.integers(1, 2000))),
        settings={"ratios": draw(st.dictionaries(NAMES, st.floats(0.01, 0.99), max_size=3))},
        cost={"before": {"macs": draw(st.integers(0, 10**15))}},
        groups={},
        slices={name: axes for name, axes in slices.items() if axes},
        depthwise=draw(st.dictionaries(NAMES, st.integers(1, 9), max_size=2)),
    )


def plain(plan: Plan) -> dict[str, Any]:
    """A plan as values that compare."""
    slices = {n: {a: k.tolist() for a, k in axes.items()} for n, axes in plan.slices.items()}
    return {**vars(plan), "slices": slices}


def write(folder: Path, text: str) -> Path:
    path = folder / "model.plan.json"
    path.write_text(text, encoding="utf-8")
    return path


@FILE_PROPERTY
@given(plan=plans())
def test_what_is_written_is_read(tmp_path: Path, plan: Plan) -> None:
    again = Plan.read(write(tmp_path, plan.to_json()))
    assert plain(again) == plain(plan)
    assert again.fingerprint == plan.fingerprint
    assert again.to_json() == plan.to_json()


def test_what_a_training_goes_on_with_is_not_in_the_file(tmp_path: Path) -> None:
    """A plan that was read is continued only if its training is resumed."""
    plan = small_plan(SmallNet())
    schedule = {"asked": {"epochs": 1, "steps": 2}, "kept": {"stem": [3, 2]}, "done": 1}
    plan.settings["schedule"] = schedule
    plan.continues = True
    again = Plan.read(write(tmp_path, plan.to_json()))
    assert not again.continues
    assert again.settings["schedule"] == schedule and again.steps.count == 2
    again.resume(tmp_path / "model")
    assert again.continues
    assert small_plan(SmallNet()).steps is None


def test_the_file_has_one_line_a_tensor() -> None:
    text = small_plan(SmallNet()).to_json()
    assert json.loads(text)["schema"] == "slim_det.plan/1"
    assert '\n    "inner.weight": {"0": [1, 2, 5], "1": [0, 3]},\n' in text
    assert '\n    "head.weight": [2, 4, 1, 1],\n' in text


@FILE_PROPERTY
@given(share=st.floats(0.0, 1.0, exclude_max=True))
def test_a_file_cut_short_is_damaged(tmp_path: Path, share: float) -> None:
    text = small_plan(SmallNet()).to_json().rstrip()
    with pytest.raises(PlanError, match="cannot be read|is not a plan"):
        Plan.read(write(tmp_path, text[: int(share * len(text))]))


DAMAGE: dict[str, Any] = {
    "tensors": [None, [], {"stem.weight": 5}, {}],
    "slices": [None, 7, {"stem.weight": 3}, {"unknown": {"0": [0]}}]
    + [
        {"stem.weight": {"0": kept}}
        for kept in ([], [4], [10**30], [-1, 0], [2, 1], [1, 1], ["a"], None)
    ]
    + [{"stem.weight": {"4": [0]}}, {"stem.weight": {"first": [0]}}],
    "image_size_hw": [None, 608],
    "depthwise": [None, [1]],
    "groups": [None, "stem"],
    "settings": [None, 0.5]
    + [{"schedule": schedule} for schedule in (3, {"done": 1}, {"asked": {}, "kept": {"a": [1]}})]
    + [{"schedule": {"asked": {"epochs": 1}, "kept": {"a": [2, 1]}, "done": 3}}],
    "cost": [None, 1],
}


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in DAMAGE.items() for value in values]
)
def test_a_damaged_entry(tmp_path: Path, key: str, value: Any) -> None:
    data = json.loads(small_plan(SmallNet()).to_json())
    data[key] = value
    with pytest.raises(PlanError, match="damaged") as caught:
        Plan.read(write(tmp_path, json.dumps(data)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", [*DAMAGE, "architecture", "fingerprint", "schema"])
def test_a_missing_entry(tmp_path: Path, key: str) -> None:
    data = json.loads(small_plan(SmallNet()).to_json())
    del data[key]
    with pytest.raises(PlanError, match="damaged|is not a plan"):
        Plan.read(write(tmp_path, json.dumps(data)))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "cannot be read"),
        ("{", "cannot be read"),
        ("null", "is not a plan: schema is 'NoneType'"),
        ("[]", "is not a plan: schema is 'list'"),
        ("{}", "is not a plan: schema is None, expected 'slim_det.plan/1'"),
        ('{"schema": "slim_det.plan/2"}', "schema is 'slim_det.plan/2', expected"),
    ],
)
def test_another_kind_of_file(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        Plan.read(write(tmp_path, text))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="does not exist"):
        Plan.read(tmp_path / "none.json")
    with pytest.raises(PlanError, match="cannot be read"):
        Plan.read(tmp_path)
    binary = tmp_path / "weights.pdparams"
    binary.write_bytes(b"\x80\x02\xff\x00")
    with pytest.raises(PlanError, match="cannot be read"):
        Plan.read(binary)


def test_a_changed_tensor_table_does_not_match_its_fingerprint(tmp_path: Path) -> None:
    data = json.loads(small_plan(SmallNet()).to_json())
    data["tensors"]["head.bias"] = [3]
    with pytest.raises(PlanError, match="its fingerprint does not match its tensors"):
        Plan.read(write(tmp_path, json.dumps(data)))


def test_a_fingerprint_depends_on_class_names_and_shapes_and_not_on_order() -> None:
    tensors = {"a": (1, 2), "b": (3,)}
    prints = [
        fingerprint("Net", tensors),
        fingerprint("Other", tensors),
        fingerprint("Net", {**tensors, "b": (4,)}),
        fingerprint("Net", {"a": (1, 2), "c": (3,)}),
        fingerprint("Net", {"a": (1, 2)}),
    ]
    assert len(set(prints)) == len(prints)
    assert fingerprint("Net", {"b": (3,), "a": (1, 2)}) == prints[0]


def test_slices_and_shapes_by_hand() -> None:
    plan = small_plan(SmallNet())
    assert plan.shapes_after()["inner.weight"] == (3, 2, 1, 1)
    assert plan.shapes_after()["head.weight"] == (2, 2, 1, 1)
    assert "head.bias" not in plan.shapes_after()
    table = np.arange(24).reshape(6, 4, 1, 1)
    rows = [[4, 7], [8, 11], [20, 23]]
    assert plan.slice("inner.weight", table)[:, :, 0, 0].tolist() == rows
    assert plan.slice("head.bias", np.array([1, 2])).tolist() == [1, 2]


def test_applying_changes_what_the_plan_names_and_nothing_else() -> None:
    net = SmallNet()
    net.inner.weight.stop_gradient = True
    net.stem.weight.optimize_attr["learning_rate"] = 0.25
    plan = small_plan(net)
    before = {name: (p, p.name, p.stop_gradient, p.numpy()) for name, p in net.named_parameters()}
    keys = list(net.state_dict())
    apply_plan(net, plan)
    assert list(net.state_dict()) == keys
    for name, param in net.named_parameters():
        same, old_name, stopped, value = before[name]
        assert param is same
        assert (param.name, param.stop_gradient) == (old_name, stopped)
        np.testing.assert_array_equal(param.numpy(), plan.slice(name, value))
    assert net.stem.weight.optimize_attr["learning_rate"] == 0.25
    assert plan_of(net) is plan


def test_layers_know_their_new_width() -> None:
    net = SmallNet()
    apply_plan(net, small_plan(net))
    widths = {
        name: (layer._in_channels, layer._out_channels, layer._groups)
        for name, layer in net.named_sublayers()
        if isinstance(layer, paddle.nn.Conv2D)
    }
    assert widths == {
        "stem": (3, 2, 1),
        "depthwise": (2, 2, 2),
        "inner": (2, 3, 1),
        "outer": (3, 2, 1),
        "head": (2, 2, 1),
    }
    assert net.bn._num_features == 2
    assert "Conv2D(2, 3" in str(net.inner)


def test_a_cut_network_learns() -> None:
    net = SmallNet()
    apply_plan(net, small_plan(net))
    optimizer = paddle.optimizer.Momentum(0.1, parameters=net.parameters())
    before = net.inner.weight.numpy()
    for _ in range(2):
        net(paddle.rand([2, 3, 8, 8])).square().mean().backward()
        optimizer.step()
        optimizer.clear_grad()
    assert (net.inner.weight.numpy() != before).any()
    velocity = next(v for k, v in optimizer.state_dict().items() if net.inner.weight.name in k)
    assert tuple(velocity.shape) == (3, 2, 1, 1)


def test_a_weight_that_two_layers_share_is_cut_once() -> None:
    net = SmallNet()
    net.surrogate = paddle.nn.Conv2D(4, 4, 3, padding=1, groups=4)
    net.surrogate.weight = net.depthwise.weight
    plan = small_plan(net)
    plan.slices["surrogate.bias"] = {0: np.array([0, 3])}
    apply_plan(net, plan)
    assert net.surrogate._groups == net.depthwise._groups == 2
    net.surrogate(paddle.ones([1, 2, 4, 4]))


def test_a_whole_model_has_no_plan() -> None:
    assert plan_of(SmallNet()) is None


class Wider(SmallNet):
    """The same but for one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = paddle.nn.Conv2D(4, 7, 1)


class Longer(SmallNet):
    """One more layer."""

    def __init__(self) -> None:
        super().__init__()
        self.extra = paddle.nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (Wider, "inner.weight is [6, 4, 1, 1] in the plan and [7, 4, 1, 1] in the model"),
        (Wider, "plan is of SmallNet, model is Wider"),
        (Longer, "extra.weight is only in the model"),
    ],
)
def test_a_plan_of_another_model_shows_the_differences(model: type[SmallNet], words: str) -> None:
    plan, other = small_plan(SmallNet()), model()
    shapes = tensor_shapes(other)
    with pytest.raises(PlanError) as caught:
        apply_plan(other, plan)
    assert words in str(caught.value)
    assert str(caught.value).startswith("the plan belongs to another model: ")
    assert tensor_shapes(other) == shapes
    assert plan_of(other) is None


def test_a_plan_is_applied_once() -> None:
    net = SmallNet()
    apply_plan(net, small_plan(net))
    plan = small_plan(SmallNet())
    with pytest.raises(PlanError, match="in the plan and"):
        apply_plan(net, plan)


def test_differences_and_their_summary() -> None:
    left, right = {"a": (1,), "b": (2, 3), "c": (4,)}, {"b": (2, 4), "c": (4,), "d": (5,)}
    phrases = differing(left, right, "plan", "model")
    assert phrases == [
        "a is only in the plan",
        "b is [2, 3] in the plan and [2, 4] in the model",
        "d is only in the model",
    ]
    assert differing(left, left, "plan", "model") == []
    assert summary([]) == ""
    assert summary(list("abcde")) == "a; b; c; d; e"
    assert summary(list("abcdefg")) == "a; b; c; d; e; and 2 more"
