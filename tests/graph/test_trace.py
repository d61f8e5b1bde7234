"""Traces hold all of a layer and leave it unchanged; traced programs compute the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle.jit.dy2static.program_translator import ProgramTranslator
from paddle.static import InputSpec, Variable

from slim_det.core.errors import ConfigError
from slim_det.graph.op import Op
from slim_det.graph.stand_ins import FUNCTIONS
from slim_det.graph.trace import trace_detector, trace_layer, trace_program
from slim_det.graph.tracing import deployment_program
from tests.graph.nets import run_saved
from tests.support import assert_same_sums, trace_plain


class Block(paddle.nn.Layer):
    """conv 3->4, batch norm, dropout, linear on the pooled channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = paddle.nn.Conv2D(3, 4, 3, stride=2, padding=1, bias_attr=False)
        self.bn = paddle.nn.BatchNorm2D(4)
        self.dropout = paddle.nn.Dropout(0.5)
        self.fc = paddle.nn.Linear(4, 5)

    def forward(self, x: paddle.Tensor) -> dict[str, paddle.Tensor]:
        y = F.relu(self.bn(self.conv(x)))
        return {"scores": self.fc(self.dropout(y.mean([2, 3]))), "map": y}


class Failing(Block):
    """Fails in the middle."""

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        self.conv(x)
        raise ValueError("no such size\n  as this")


class Apply(paddle.nn.Layer):
    """A function of one tensor as a layer."""

    def __init__(self, function: Callable[[paddle.Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: paddle.Tensor) -> Any:
        return self.function(x)


def public_functions() -> dict[tuple[str, str], Any]:
    modules = (paddle, paddle.tensor, paddle.nn.functional, Variable)
    return {
        (module.__name__, name): getattr(module, name)
        for module in modules
        for name in FUNCTIONS
        if hasattr(module, name)
    }


def test_operators_come_in_execution_order_with_shapes() -> None:
    trace = trace_plain(Block(), 1, 3, 9, 8)
    types = [op.type for op in trace.ops]
    assert types[:3] == ["conv2d", "batch_norm", "relu"]
    assert "matmul_v2" in types
    conv = trace.ops[0]
    assert conv.input("Input") == "x"
    assert trace.parameters[conv.input("Filter")] == "conv.weight"
    assert trace.shapes[conv.input("Filter")] == (4, 3, 3, 3)
    assert trace.shapes[conv.output("Output")] == (1, 4, 5, 4)
    assert conv.attrs["strides"] == [2, 2]
    assert trace.image_size_hw is None


def test_every_parameter_is_known_under_its_state_dict_name() -> None:
    net = Block()
    assert sorted(trace_plain(net, 1, 3, 8, 8).parameters.values()) == sorted(net.state_dict())


def test_all_outputs_are_known_in_any_structure() -> None:
    trace = trace_plain(Block(), 1, 3, 8, 8)
    assert sorted(trace.shapes[name] for name in trace.outputs) == [(1, 4, 4, 4), (1, 5)]


def test_a_layer_without_operators() -> None:
    trace = trace_plain(Apply(lambda x: x), 1, 3, 8, 8)
    assert [op.type for op in trace.ops if op.type not in ("assign", "scale")] == []
    assert trace.parameters == {}


def test_a_trace_is_taken_in_evaluation_mode() -> None:
    net = Block()
    net.train()
    (norm,) = (op for op in trace_plain(net, 1, 3, 8, 8).ops if op.type == "batch_norm")
    assert norm.attrs["is_test"] is True


def test_empty_slots_are_empty_text() -> None:
    op = Op("conv2d", {"Input": ["x"], "Bias": []}, {"Output": ["y"]}, {})
    assert (op.input("Input"), op.input("Bias"), op.input("None")) == ("x", "", "")
    assert (op.output("Output"), op.output()) == ("y", "")


@pytest.mark.parametrize("training", [True, False])
def test_the_layer_is_left_as_it_was(training: bool) -> None:
    net = Block()
    net.train() if training else net.eval()
    net.bn.training = not training  # e.g. a frozen batch norm in a model that trains
    modes = [sub.training for sub in net.sublayers(include_self=True)]
    members, values = list(vars(net)), [p.numpy() for p in net.parameters()]
    trace_plain(net, 1, 3, 8, 8)
    assert [sub.training for sub in net.sublayers(include_self=True)] == modes
    assert list(vars(net)) == members
    assert net.forward.__func__ is Block.forward
    for param, value in zip(net.parameters(), values):
        np.testing.assert_array_equal(param.numpy(), value)


def test_a_traced_layer_still_learns() -> None:
    net = Block()
    trace_plain(net, 1, 3, 8, 8)
    assert paddle.in_dynamic_mode()
    net(paddle.rand([2, 3, 8, 8]))["scores"].sum().backward()
    assert net.fc.weight.grad is not None


def test_automatic_names_keep_counting() -> None:
    """A layer that is made after a trace must not get a name that is taken."""
    names = [paddle.nn.Linear(1, 1).weight.name]
    trace_plain(Block(), 1, 3, 8, 8)
    names.append(paddle.nn.Linear(1, 1).weight.name)
    first, second = (int(name.split(".")[0].rpartition("_")[2]) for name in names)
    assert second == first + 2, "the block's own linear layer lies between"


def test_a_failing_layer_leaves_everything_as_it_was() -> None:
    net, functions = Failing(), public_functions()
    net.train()
    with pytest.raises(ValueError, match="no such size"):
        trace_plain(net, 1, 3, 8, 8)
    assert all(sub.training for sub in net.sublayers(include_self=True))
    assert public_functions() == functions
    assert paddle.in_dynamic_mode()


def test_a_failing_trace_leaves_no_parameters_to_the_next() -> None:
    """Paddle would count them among those of a later program with the same id."""
    notes = ProgramTranslator.get_instance()._params_recorder.params_dict
    before = dict(notes)
    with pytest.raises(ValueError, match="no such size"):
        trace_plain(Failing(), 1, 3, 8, 8)
    assert notes == before


class FailingDetector(Failing):
    """Has the inputs of a detector."""

    def forward(self, inputs: dict[str, paddle.Tensor]) -> paddle.Tensor:
        self.conv(inputs["image"])
        raise ValueError("no such size\n  as this")


def test_a_detector_that_does_not_run_is_one_line() -> None:
    message = "^the model does not run on an image of 32x64 pixels: .*as this$"
    with pytest.raises(ConfigError, match=message) as caught:
        trace_detector(FailingDetector(), (32, 64))
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="as this; most detectors need multiples of 32 pixels"):
        trace_detector(FailingDetector(), (32, 48))


def test_a_program_has_only_the_inputs_that_it_reads() -> None:
    """Boxes of PP-YOLOE need no `im_shape`."""

    class Scaled(Block):
        def forward(self, inputs: dict[str, paddle.Tensor]) -> paddle.Tensor:
            return self.conv(inputs["image"]).mean([2, 3]) * inputs["scale_factor"].mean()

    assert sorted(trace_program(Scaled(), (32, 48)).feeds) == ["image", "scale_factor"]


@pytest.mark.parametrize(
    ("fails", "said"),
    [
        (lambda x: paddle.concat([x, x[:, :, 1:]], 1), "InvalidArgument"),
        (lambda x: [1][x.shape[0]], "IndexError: list index out of range"),
    ],
)
def test_why_a_detector_does_not_run(fails: Callable[..., Any], said: str) -> None:
    class Detector(Block):
        def forward(self, inputs: dict[str, paddle.Tensor]) -> Any:
            return fails(self.conv(inputs["image"]))

    with pytest.raises(ConfigError) as caught:
        trace_detector(Detector(), (32, 64))
    assert said in str(caught.value) and "[operator" not in str(caught.value)


def test_where_a_detector_does_not_run() -> None:
    """An assertion without a message is named by its line."""

    class Detector(Block):
        def forward(self, inputs: dict[str, paddle.Tensor]) -> Any:
            assert len(inputs) == 7
            return self.conv(inputs["image"])

    with pytest.raises(ConfigError, match="AssertionError at 'assert len.inputs. == 7'"):
        trace_detector(Detector(), (32, 64))


def test_a_detector_is_traced_at_the_requested_size() -> None:
    class Detector(Block):
        def forward(self, inputs: dict[str, paddle.Tensor]) -> paddle.Tensor:
            return self.conv(inputs["image"])

    trace = trace_detector(Detector(), (32, 48))
    assert trace.image_size_hw == (32, 48)
    assert trace.shapes[trace.outputs[0]] == (1, 4, 16, 24)


class Weighed(Block):
    """Adds a branch if its weight is not zero, as RepVGG blocks of PP-YOLOE+ do."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = self.create_parameter([1])
        self.weight.set_value(paddle.to_tensor([weight]))

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        y = self.conv(x)
        if self.weight:
            y = y + self.weight * F.relu(self.conv(x))
        return y


@pytest.mark.parametrize(("weight", "branches"), [(0.5, 2), (0.0, 1)])
def test_a_condition_on_a_parameter_is_decided_by_its_value(weight: float, branches: int) -> None:
    trace = trace_plain(Weighed(weight), 1, 3, 8, 8)
    types = [op.type for op in trace.ops]
    assert types.count("conv2d") == branches
    assert "conditional_block" not in types and "cond" not in types


def test_both_branches_of_a_condition_on_the_input_are_listed() -> None:
    class Positive(paddle.nn.Layer):
        def forward(self, x: paddle.Tensor) -> paddle.Tensor:
            x = F.relu(x) if x.mean() > 0 else F.softsign(x)
            return F.relu6(x)

    trace = trace_plain(Positive(), 1, 3)
    types = [op.type for op in trace.ops]
    assert "conditional_block" not in types
    order = [types.index(kind) for kind in ("relu", "softsign", "select_input", "relu6")]
    assert order == sorted(order)
    (select,) = (op for op in trace.ops if op.type == "select_input")
    assert [trace.shapes[name] for name in select.inputs["X"]] == [(1, 3), (1, 3)]


@pytest.mark.parametrize("batch", [3, None])
def test_a_loop_over_the_images_is_unrolled_if_their_number_is_known(batch: int | None) -> None:
    class Loop(paddle.nn.Layer):
        def forward(self, x: paddle.Tensor) -> paddle.Tensor:
            y = x.sum()
            for _ in range(paddle.slice(paddle.shape(x), [0], [0], [1])):
                y = F.relu(y)
            return y

    trace = trace_layer(Loop(), [InputSpec([batch, 2], "float32", "x")])
    types = [op.type for op in trace.ops]
    assert types.count("relu") == (batch or 0)
    assert ("while" in types) == (batch is None)


def test_a_detector_of_keypoints_is_traced_as_it_is_deployed() -> None:
    class Flipped(paddle.nn.Layer):
        deploy = False

        def forward(self, x: paddle.Tensor) -> paddle.Tensor:
            return F.relu(x) if self.deploy else paddle.to_tensor(x.numpy()[::-1].copy())

    net = Flipped()
    assert [op.type for op in trace_plain(net, 1, 3).ops] == ["relu"]
    assert net.deploy is False


def test_functions_are_replaced_only_inside() -> None:
    before = public_functions()
    assert {name for _, name in before} == set(FUNCTIONS)
    with deployment_program():
        inside = public_functions()
        assert all(inside[key] is not before[key] for key in before)
    assert public_functions() == before
    with pytest.raises(KeyError), deployment_program():
        raise KeyError("x")
    assert public_functions() == before


def test_precision_mode_and_format_are_restored() -> None:
    flag = "FLAGS_enable_pir_api"
    before = paddle.get_flags(flag)
    with paddle.no_grad():
        with deployment_program():
            assert not paddle.in_dynamic_mode()
            assert paddle.get_flags(flag) == {flag: False}
        assert not paddle.is_grad_enabled()
    assert paddle.is_grad_enabled()
    assert paddle.in_dynamic_mode()
    assert paddle.get_flags(flag) == before


def test_a_traced_network_gives_what_the_layer_gives(tmp_path: Path) -> None:
    net = Block()
    net.eval()
    path = str(tmp_path / "model")
    with deployment_program():
        paddle.jit.save(net, path, input_spec=[InputSpec([2, 3, 8, 8], "float32", "x")])
    x = np.random.default_rng(1).normal(size=(2, 3, 8, 8)).astype("float32")
    expected = net(paddle.to_tensor(x))
    reached = {value.shape: value for value in run_saved(path, x)}
    for value in expected.values():
        assert_same_sums(reached[tuple(value.shape)], value.numpy())


def test_input_specs_of_any_structure() -> None:
    class Two(paddle.nn.Layer):
        def forward(self, inputs: dict[str, paddle.Tensor], y: paddle.Tensor) -> paddle.Tensor:
            return inputs["a"] + y

    spec = InputSpec([1, 2], "float32", "a"), InputSpec([1, 2], "float32", "y")
    trace = trace_layer(Two(), [{"a": spec[0]}, spec[1]])
    assert [op.type for op in trace.ops] == ["elementwise_add"]
