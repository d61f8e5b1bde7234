"""Programs are read, edited, copied and written without unwanted changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import paddle
import pytest

from slim_det.core.errors import ExportError
from slim_det.graph.op import Op
from slim_det.graph.program import (
    DeployProgram,
    head_convolutions,
    last_convolutions,
)
from slim_det.graph.trace import trace_program
from slim_det.training import session
from slim_det.training.config import load_config
from tests.compress.quantize.nets import make_net, picture
from tests.graph.nets import engine_of, operators, program_of, run_one
from tests.support import assert_same_sums

SHAPE = (1, 2, 5, 5)
WEIGHTS = ["stem.0.weight", "left.weight", "middle.weight", "right.weight", "output.weight"]


@pytest.fixture
def net() -> paddle.nn.Layer:
    return make_net()


@pytest.fixture
def program(net: paddle.nn.Layer, tmp_path: Path) -> DeployProgram:
    return program_of(net, SHAPE, tmp_path)


def output_of(net: paddle.nn.Layer) -> np.ndarray:
    return net(picture()).numpy()


def test_program_is_the_net(net: paddle.nn.Layer, program: DeployProgram, tmp_path: Path) -> None:
    assert program.feeds == ["x"] and len(program.fetches) == 1
    parameters = dict(net.named_parameters())
    assert set(program.parameters) == {p.name for p in parameters.values()}
    for parameter in parameters.values():
        assert np.array_equal(program.value(parameter.name), parameter.numpy())
    found = run_one(program, picture().numpy(), tmp_path)
    assert_same_sums(found, output_of(net))
    assert paddle.in_dynamic_mode()


@pytest.mark.parametrize("damage", ["no model", "no parameters", "cut model", "cut parameters"])
def test_files_that_cannot_be_read(program: DeployProgram, tmp_path: Path, damage: str) -> None:
    program.save(tmp_path / "sound")
    suffix = ".pdmodel" if "model" in damage else ".pdiparams"
    path = tmp_path / f"sound{suffix}"
    if damage.startswith("no"):
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ExportError, match="sound' cannot be loaded") as error:
        DeployProgram.load(tmp_path / "sound")
    assert "\n" not in str(error.value)
    assert paddle.in_dynamic_mode()


def test_written_and_read_again(program: DeployProgram, tmp_path: Path) -> None:
    program.save(tmp_path / "again")
    again = DeployProgram.load(tmp_path / "again")
    assert operators(again) == operators(program)
    assert (again.feeds, again.fetches) == (program.feeds, program.fetches)
    for name in program.parameters:
        assert np.array_equal(again.value(name), program.value(name))


def test_saved_part_takes_only_what_it_needs(tmp_path: Path) -> None:
    """Outputs may be any variable; an input that they do not depend on is left out."""

    class Two(paddle.nn.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.first = paddle.nn.Conv2D(2, 2, 1)
            self.second = paddle.nn.Conv2D(2, 2, 1)

        def forward(self, x: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
            return self.first(x), self.second(self.first(x))

    program = program_of(Two(), (1, 2, 3, 3), tmp_path)
    program.new_variable("unused", "x")
    program.feeds.append("unused")
    program.save(tmp_path / "part", fetches=program.fetches[:1])
    part = DeployProgram.load(tmp_path / "part")
    assert part.feeds == ["x"] and part.fetches == program.fetches[:1]
    assert len(part.convolutions) == 1 < len(program.convolutions)


def test_copy_shares_nothing(program: DeployProgram, tmp_path: Path) -> None:
    before, values = operators(program), {n: program.value(n) for n in program.parameters}
    copy = program.copy()
    name = program.stored_weight(program.convolutions[0])
    copy.set_value(name, np.zeros_like(values[name]))
    copy.remove(copy.ops[3])
    copy.feeds.clear()
    assert operators(program) == before and program.feeds == ["x"]
    assert all(np.array_equal(program.value(n), value) for n, value in values.items())
    assert not copy.value(name).any()


@pytest.mark.parametrize(
    "array",
    [np.zeros((2, 3), np.float32), np.ones(7, np.int8), np.array([5], np.int32), np.float32([1.5])],
    ids=["shape", "int8", "int32", "one"],
)
def test_value_of_another_type_and_shape(program: DeployProgram, array: np.ndarray) -> None:
    """Of an existing parameter, and of a new one."""
    for name in (program.parameters[0], "new"):
        program.set_value(name, array)
        assert np.array_equal(program.value(name), array)
        assert program.value(name).dtype == array.dtype
        assert tuple(program.block.var(name).shape) == array.shape
        assert name in program.parameters


def test_value_is_a_copy(program: DeployProgram) -> None:
    name = program.parameters[0]
    before = program.value(name)
    program.value(name)[:] = 77.0
    assert np.array_equal(program.value(name), before)


def test_operator_that_is_inserted(
    net: paddle.nn.Layer, program: DeployProgram, tmp_path: Path
) -> None:
    """The input is doubled before the first convolution, whose input is renamed by hand."""
    first = program.convolutions[0]
    place = program.ops.index(first)
    doubled = program.new_variable("doubled", "x")
    program.insert(place, "scale", {"X": ["x"]}, {"Out": [doubled]}, {"scale": 2.0, "bias": 0.0})
    program.rename_input(first, "x", doubled)
    assert program.writer("doubled").type == "scale" and program.writer("x").type == "feed"
    assert [op.type for op in program.readers("doubled")] == [first.type]
    found = run_one(program, picture().numpy(), tmp_path)
    assert_same_sums(found, net(picture() * 2.0).numpy())


def test_weights_of_convolutions_in_order(net: paddle.nn.Layer, program: DeployProgram) -> None:
    parameters = dict(net.named_parameters())
    found = [program.stored_weight(op) for op in program.convolutions]
    assert found == [parameters[name].name for name in WEIGHTS]


def test_copy_that_shares_parameters(program: DeployProgram) -> None:
    """Operators are edited apart; parameters are the same."""
    before = operators(program)
    copy = program.copy(share_parameters=True)
    copy.remove(copy.ops[3])
    assert operators(program) == before and len(operators(copy)) == len(before) - 1
    name = program.stored_weight(program.convolutions[0])
    program.set_value(name, 2 * program.value(name))
    assert np.array_equal(copy.value(name), program.value(name))


def test_every_edit_is_seen_on_both_sides(program: DeployProgram) -> None:
    """The list equals Paddle's program, and readers and writers follow."""
    first, second = program.convolutions[:2]
    program.set_attribute(first, "bit_length", 8)
    old = first.output("Output")
    program.rename_output(first, old, program.new_variable("renamed", like=old))
    assert program.writer("renamed") is first and program.writer(old) is None
    for reader in program.readers(old):
        program.rename_input(reader, old, "renamed")
    assert program.readers(old) == [] and len(program.readers("renamed")) == 1
    place = program.ops.index(second)
    assert program.remove(second) == place and second not in program.convolutions
    assert program.writer(second.output("Output")) is None
    for op, raw in zip(program.ops, program.block.ops):
        again = Op.read(raw)
        assert (op.type, op.inputs, op.outputs) == (again.type, again.inputs, again.outputs)
        assert op.attrs == again.attrs
    assert len(program.ops) == len(program.block.ops) and first.attrs["bit_length"] == 8


def test_bias_is_told_from_another_tensor(tmp_path: Path) -> None:
    """A bias is a parameter, reshaped or not; a sum of two tensors has none."""

    class Sum(paddle.nn.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.left = paddle.nn.Conv2D(2, 2, 1)
            self.right = paddle.nn.Conv2D(2, 2, 1, bias_attr=False)

        def forward(self, x: paddle.Tensor) -> paddle.Tensor:
            return paddle.nn.functional.relu(self.left(x) + self.right(x))

    program = program_of(Sum(), (1, 2, 3, 3), tmp_path)
    left, right = program.convolutions
    assert program.with_bias(right) == right.output("Output")
    assert program.bias_addition(right) is None
    addition = program.bias_addition(left)
    assert addition is not None and addition.input("X") == left.output("Output")
    assert program.with_bias(left) == addition.output()
    assert [op.type for op in program.downstream([right.output("Output")])] == [
        "elementwise_add",
        "relu",
    ]
    assert program.downstream([]) == []


class Known(NamedTuple):
    """An operator with its type, inputs and outputs."""

    type: str
    input_arg_names: list[str]
    output_arg_names: list[str]


TWO_HEADS = [
    Known("conv2d", ["image"], ["a"]),
    Known("relu", ["a"], ["b"]),
    Known("depthwise_conv2d", ["b"], ["c"]),
    Known("conv2d", ["c"], ["boxes"]),
    Known("conv2d", ["c"], ["scores"]),
    Known("prior_box", ["c", "image"], ["anchors"]),
    Known("softmax", ["scores"], ["chances"]),
]


@pytest.mark.parametrize(
    ("ops", "last"),
    [
        ([], []),
        (TWO_HEADS[1:2], []),
        (TWO_HEADS[:2], ["a"]),
        (TWO_HEADS[:3], ["c"]),
        (TWO_HEADS, ["boxes", "scores"]),
    ],
)
def test_last_convolutions(ops: list[Known], last: list[str]) -> None:
    """An operator that computes anchors from a feature map is not a convolution."""
    assert [op.output_arg_names[0] for op in last_convolutions(ops)] == last
    assert head_convolutions(ops) == []
    suppressed = [*ops, Known("multiclass_nms3", ["boxes", "chances", "anchors"], ["found"])]
    assert head_convolutions(suppressed) == last_convolutions(ops)
    peaks = [Known("pool2d", ["scores"], ["most"]), Known("equal", ["most", "scores"], ["peaks"])]
    assert head_convolutions([*ops, *peaks]) == last_convolutions(ops)
    assert head_convolutions([*ops, peaks[0], Known("equal", ["scores"], ["same"])]) == []


def test_raw_outputs_without_boxes(program: DeployProgram) -> None:
    assert program.raw_outputs == []


def test_normalization_is_the_batch_norm_that_alone_reads(tmp_path: Path) -> None:
    class Two(paddle.nn.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = paddle.nn.Conv2D(2, 2, 1), paddle.nn.Conv2D(2, 2, 1, bias_attr=False)
            self.bn = paddle.nn.BatchNorm2D(2)

        def forward(self, x: paddle.Tensor) -> Any:
            y = self.b(x)
            return self.bn(self.a(x)), self.bn(y) + y

    program = program_of(Two(), SHAPE, tmp_path)
    second, first = program.convolutions
    norm = program.normalization(first)
    assert norm is not None and norm.input("X") == program.with_bias(first)
    assert program.normalization(second) is None


def test_swish_says_its_slope(tmp_path: Path) -> None:
    """Paddle-Lite's converter ends without it, and Paddle does not write it."""

    class Swish(paddle.nn.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.conv = paddle.nn.Conv2D(2, 2, 1)

        def forward(self, x: paddle.Tensor) -> paddle.Tensor:
            return paddle.nn.functional.swish(self.conv(x))

    program_of(Swish(), SHAPE, tmp_path).save(tmp_path / "again")
    assert b"beta" in (tmp_path / "again.pdmodel").read_bytes()


def test_raw_outputs_of_a_detector(fresh_config: Any, tiny: Path) -> None:
    """With bias, finest last, as the decoding of YOLO boxes reads them."""
    model = session.build_model(load_config(tiny))
    program = trace_program(model, (64, 96))
    decoded = [op.input("X") for op in program.ops if op.type == "yolo_box"]
    assert program.raw_outputs == decoded and len(decoded) == 3
    assert [tuple(program.block.var(name).shape[2:]) for name in decoded] == [
        (2, 3),
        (4, 6),
        (8, 12),
    ]


def test_engine_gives_outputs_by_name_in_order(program: DeployProgram, tmp_path: Path) -> None:
    """Of any variables, in the requested order."""
    names = [op.output("Output") for op in program.convolutions][::-1]
    program.fetches = names
    engine = engine_of(program, tmp_path)
    assert engine.inputs == ["x"] and engine.outputs == names
    found = engine({"x": picture().numpy()})
    assert list(found) == names
    assert found[names[-1]].shape == (1, 4, 5, 5) and found[names[0]].shape == (1, 3, 5, 5)
