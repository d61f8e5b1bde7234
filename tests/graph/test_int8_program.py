"""Integers in a program equal those worked out on paper, and those of the simulation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from paddle.nn import Conv2D
from paddle.nn import functional as F

from slim_det.compress.quantize.model import keep_float, program_ranges, quantize_model
from slim_det.compress.quantize.quantizable_layers import find_quantizable_layers
from slim_det.compress.quantize.record import QuantLayer, QuantRecord
from slim_det.compress.quantize.settings import QuantSettings
from slim_det.core.errors import ExportError, QuantError
from slim_det.graph.int8_program import float_layers, int8_layers, remove_int8, write_int8
from slim_det.graph.program import DeployProgram
from tests.compress.quantize.nets import make_net, make_quantized, picture
from tests.graph.nets import (
    PIXELS,
    SHAPE,
    engine_of,
    folded_with_scales,
    one_convolution,
    operators,
    program_of,
    run_one,
)
from tests.support import assert_same_sums, require_int8, trace_plain


def int8_of(
    net: paddle.nn.Layer, shape: tuple[int, ...], folder: Path
) -> tuple[DeployProgram, dict[str, Any]]:
    program, scales = folded_with_scales(net, shape, folder)
    write_int8(program, scales)
    return program, scales


ONE_BY_ONE = {
    # Ranges 1.27 and 2.54, steps 0.01 and 0.02: integers [127, -50], [2, 127].
    # Pixel 1 is [3.1, -0.3], pixel 2 is [12.7, 1.0].
    "channel_wise_abs_max": (
        [[1.27, -0.504], [0.031, 2.54]],
        [[127, -50], [2, 127]],
        [[1.27 * 3.1 + 0.5 * 0.3, 1.27 * 12.7 - 0.5], [0.04 * 3.1 - 2.54 * 0.3, 0.508 + 2.54]],
    ),
    # Range 2.54 of all: [127, -25], [2, 127].
    "abs_max": (
        [[2.54, -0.504], [0.031, 2.54]],
        [[127, -25], [2, 127]],
        [[2.54 * 3.1 + 0.5 * 0.3, 2.54 * 12.7 - 0.5], [0.04 * 3.1 - 2.54 * 0.3, 0.508 + 2.54]],
    ),
}


@pytest.mark.parametrize("weight_type", list(ONE_BY_ONE))
def test_one_by_one_on_paper(weight_type: str, tmp_path: Path) -> None:
    """File, engine and simulation."""
    weight, integers, expected = ONE_BY_ONE[weight_type]
    net = one_convolution(weight, 12.7, weight_type=weight_type)
    simulated = net(paddle.to_tensor(PIXELS)).numpy()
    assert_same_sums(simulated[0, :, 0], expected)
    program, scales = int8_of(net, PIXELS.shape, tmp_path)
    (name,) = scales
    assert program.value(name).dtype == np.int8
    assert program.value(name)[:, :, 0, 0].tolist() == integers
    assert program.value("x.scale") == pytest.approx([12.7])
    assert_same_sums(run_one(program, PIXELS, tmp_path, onednn=False)[0, :, 0], expected)
    require_int8()
    assert_same_sums(run_one(program, PIXELS, tmp_path, int8=True)[0, :, 0], expected)


def test_three_by_three_on_paper(tmp_path: Path) -> None:
    """Nine pixels, rounded to [.1 .3 .3; 1 2 3; -1 -2 -3], whose sum is 0.7.

    The first kernel is its middle with range 1.27, the second a box of 0.635.
    """
    middle = [0, 0, 0, 0, 1.27, 0, 0, 0, 0]
    net = one_convolution([middle, [0.635] * 9], 12.7, kernel=3)
    pixels = [0.14, 0.26, 0.34, 1, 2, 3, -1, -2, -3.04]
    x = np.array(pixels, np.float32).reshape(1, 1, 3, 3)
    expected = [2 * 1.27, 0.635 * 0.7]
    assert_same_sums(net(paddle.to_tensor(x)).numpy().ravel(), expected)
    program, _ = int8_of(net, x.shape, tmp_path)
    require_int8()
    assert_same_sums(run_one(program, x, tmp_path, int8=True).ravel(), expected)


@pytest.mark.parametrize("bits, largest", [(8, 127), (7, 63), (4, 7), (2, 1)])
def test_weights_of_fewer_bits(bits: int, largest: int, tmp_path: Path) -> None:
    """They keep their range, which the largest integer L means, so the scale is range*127/L.

    The engine rounds weights again, in 127 steps of the largest of each channel.
    """
    net = one_convolution([[1.5, -0.4], [0.3, 0.7]], 4.0, weight_bits=bits)
    program, scales = int8_of(net, (1, 2, 1, 1), tmp_path)
    (name,) = scales
    assert np.abs(program.value(name)).max(axis=(1, 2, 3)).tolist() == [largest, largest]
    assert program.value(f"{name}.scale") == pytest.approx(np.array([1.5, 0.7]) * 127 / largest)
    x = np.array([1.1, -2.3], np.float32).reshape(1, 2, 1, 1)
    expected = net(paddle.to_tensor(x)).numpy()
    assert_same_sums(run_one(program, x, tmp_path, onednn=False), expected)
    require_int8()
    again = 0.5 * 1.5 / 127 * (1.1 + 2.3)
    assert run_one(program, x, tmp_path, int8=True) == pytest.approx(expected, abs=again)


def test_channel_far_below_the_range_of_the_tensor(tmp_path: Path) -> None:
    """Its integers are small, [13, -2], and so is the error of the engine's own rounding."""
    net = one_convolution([[0.26, -0.04], [0.031, 2.54]], 12.7, weight_type="abs_max")
    program, scales = int8_of(net, PIXELS.shape, tmp_path)
    (name,) = scales
    assert program.value(name)[0].ravel().tolist() == [13, -2]
    expected = net(paddle.to_tensor(PIXELS)).numpy()
    assert_same_sums(run_one(program, PIXELS, tmp_path, onednn=False), expected)
    require_int8()
    found = run_one(program, PIXELS, tmp_path, int8=True)
    assert found == pytest.approx(expected, abs=0.5 * 0.26 / 127 * 13.7)


@settings(
    max_examples=5,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    seed=st.integers(0, 2**31),
    input_range=st.floats(1e-3, 1e3),
    weight_scale=st.floats(1e-3, 1e3),
    per_channel=st.booleans(),
)
def test_engine_is_the_simulation(
    tmp_path: Path, seed: int, input_range: float, weight_scale: float, per_channel: bool
) -> None:
    """From scales to file to engine, for any ranges; some of the input lies beyond its range."""
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(3, 4))
    weight *= weight_scale / np.abs(weight).max(axis=1, keepdims=True)
    if per_channel:
        weight *= [[1.0], [0.1], [7.0]]
    kind = "channel_wise_abs_max" if per_channel else "abs_max"
    net = one_convolution(weight, input_range, weight_type=kind)
    program, scales = int8_of(net, (1, 4, 3, 3), tmp_path)
    program.save(tmp_path / "written")
    program = DeployProgram.load(tmp_path / "written")
    (name,) = scales
    assert program.value("x.scale") == pytest.approx([input_range], rel=1e-6)
    assert int8_layers(program) == [name] and float_layers(program) == []
    # Integer steps of the input, so that engines cannot round ties differently; oneDNN clips at
    # -128 below.
    x = rng.integers(-127, 200, (1, 4, 3, 3)) * (input_range / 127)
    x = x.astype("float32")
    expected = net(paddle.to_tensor(x)).numpy()
    step = input_range * scales[name].weight_ranges.max() / 127
    require_int8()
    found = run_one(program, x, tmp_path, int8=True)
    assert np.abs(found - expected).max() < 1e-3 * step


def test_nothing_is_quantized(tmp_path: Path) -> None:
    program = program_of(make_net(), SHAPE, tmp_path)
    before = operators(program)
    write_int8(program, {})
    assert operators(program) == before
    assert int8_layers(program) == [] and len(float_layers(program)) == 5


def test_net_with_batch_norm_and_shared_inputs(tmp_path: Path) -> None:
    """One rounding for the three convolutions that read one tensor; the last stays in float."""
    net = make_quantized()
    program, scales = int8_of(net, SHAPE, tmp_path)
    assert operators(program).count("quantize_linear") == 2
    assert operators(program).count("dequantize_linear") == 2 + 4
    parameters = dict(net.named_parameters())
    names = ["stem.0", "left", "middle", "right"]
    assert int8_layers(program) == [parameters[f"{name}.weight"].name for name in names]
    assert float_layers(program) == [parameters["output.weight"].name]
    assert program.value(parameters["output.weight"].name).dtype == np.float32
    require_int8()
    expected = net(picture()).numpy()
    found = run_one(program, picture().numpy(), tmp_path, int8=True)
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


def test_layer_put_back_to_float_is_float_in_the_file(tmp_path: Path) -> None:
    net = make_quantized()
    keep_float(net, ["left"], "to see")
    program, _ = int8_of(net, SHAPE, tmp_path)
    left = dict(net.named_parameters())["left.weight"]
    assert left.name in float_layers(program) and len(int8_layers(program)) == 3
    assert np.array_equal(program.value(left.name), left.numpy())


def test_float_again_with_rounded_weights(tmp_path: Path) -> None:
    """For CPUs without int8: no rounding operators, weights are integer multiples of a step."""
    net = one_convolution([[1.27, -0.504], [0.031, 2.54]], 12.7)
    program, scales = int8_of(net, PIXELS.shape, tmp_path)
    remove_int8(program)
    (name,) = scales
    assert operators(program) == ["conv2d"] and program.parameters == [name]
    weight = np.array([[1.27, -0.5], [0.04, 2.54]])
    assert program.value(name)[:, :, 0, 0] == pytest.approx(weight, abs=1e-6)
    found = run_one(program, PIXELS, tmp_path)[0, :, 0]
    assert_same_sums(found, weight @ PIXELS[0, :, 0])


def test_float_again_of_a_complete_net(tmp_path: Path) -> None:
    net = make_quantized()
    program, _ = folded_with_scales(net, SHAPE, tmp_path)
    before = operators(program)
    write_int8(program, program_ranges(net))
    remove_int8(program)
    assert operators(program) == before
    assert int8_layers(program) == [] and len(float_layers(program)) == 5
    expected = make_net()(picture()).numpy()
    found = run_one(program, picture().numpy(), tmp_path)
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


BAD_SCALES = [
    ({"input_range": 0.0}, "has lost its scales"),
    ({"input_range": float("nan")}, "has lost its scales"),
    ({"weight_ranges": np.array([1.0, np.inf, 1.0, 1.0])}, "has lost its scales"),
    ({"weight_ranges": np.array([1.0, 0.0, 1.0, 1.0])}, "has lost its scales"),
    ({"weight_ranges": np.ones(3)}, "has 3 weight ranges; expected 1 or 4"),
    ({"activation_bits": 7}, "8-bit weights and 7-bit inputs"),
    ({"weight_bits": 9}, "9-bit weights and 8-bit inputs"),
]


@pytest.mark.parametrize("change, message", BAD_SCALES)
def test_scales_that_no_engine_takes(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    """One line, and the program is as it was."""
    program, scales = folded_with_scales(make_quantized(), SHAPE, tmp_path)
    stem = next(iter(scales))
    before = operators(program)
    with pytest.raises(ExportError, match=message) as error:
        write_int8(program, {**scales, stem: replace(scales[stem], **change)})
    assert stem in str(error.value) and "\n" not in str(error.value)
    assert operators(program) == before and int8_layers(program) == []


def test_scales_of_another_net(tmp_path: Path) -> None:
    program, scales = folded_with_scales(make_quantized(), SHAPE, tmp_path)
    with pytest.raises(ExportError, match="'other.w_0' is not a float convolution"):
        write_int8(program, {"other.w_0": next(iter(scales.values()))})


def test_twice_is_an_error(tmp_path: Path) -> None:
    program, scales = int8_of(make_quantized(), SHAPE, tmp_path)
    with pytest.raises(ExportError, match="is not a float convolution"):
        write_int8(program, scales)


def test_batch_norm_that_is_still_there(tmp_path: Path) -> None:
    net = make_quantized()
    program = program_of(net, SHAPE, tmp_path)
    with pytest.raises(ExportError, match="its batch norm is not folded"):
        write_int8(program, program_ranges(net))


def test_range_that_a_model_has_lost() -> None:
    net = make_quantized()
    net.left.activation.limit.set_value(np.zeros(1, np.float32))
    with pytest.raises(QuantError, match="'left' has lost its scales"):
        program_ranges(net)


class TwoBranches(paddle.nn.Layer):
    """A branch that stays in float and one in int8, concatenated for a third convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.kept, self.left, self.right = Conv2D(16, 16, 1), Conv2D(16, 16, 1), Conv2D(32, 16, 1)
        self.last = Conv2D(16, 16, 1)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """Join both."""
        left = F.leaky_relu(self.left(x), 0.1)
        joined = paddle.concat([left, F.relu(self.kept(x))], axis=1)
        return self.last(F.leaky_relu(self.right(joined), 0.1))


def test_float_branch_of_a_concat(tmp_path: Path) -> None:
    """The engine joins integers of one kind, though no convolution rounds the float branch."""
    paddle.seed(0)
    net = TwoBranches()
    layers = [QuantLayer("left"), QuantLayer("right")]
    quantize_model(net, QuantRecord(QuantSettings(), layers, {}), {"left": 3.0, "right": 2.0})
    net.eval()
    x = np.random.default_rng(0).normal(size=(1, 16, 8, 8)).astype("float32")
    program, _ = int8_of(net, x.shape, tmp_path)
    joined = next(op for op in program.block.ops if op.type == "concat")
    assert [name.endswith(".dequantized") for name in joined.input("X")] == [True, True]
    expected = net(paddle.to_tensor(x)).numpy()
    # On average: a value on the edge between two integers may fall to either side.
    assert np.abs(run_one(program, x, tmp_path, onednn=False) - expected).mean() < 1e-3
    require_int8()
    assert np.abs(run_one(program, x, tmp_path, int8=True) - expected).max() < 0.03


class Upsampled(paddle.nn.Layer):
    """The result of a ReLU is upsampled and joined with a finer map, as in a YOLO neck."""

    def __init__(self, act: Callable[[paddle.Tensor], paddle.Tensor]) -> None:
        super().__init__()
        self.act = act
        self.coarse, self.fine = Conv2D(4, 4, 1, bias_attr=False), Conv2D(4, 8, 1, bias_attr=False)
        self.last = Conv2D(12, 4, 1, bias_attr=False)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """Join both."""
        coarse = self.act(self.coarse(F.max_pool2d(x, 2, 2)))
        return self.last(paddle.concat([F.interpolate(coarse, scale_factor=2), self.fine(x)], 1))


@pytest.mark.parametrize("act", [F.relu, F.relu6, F.leaky_relu])
def test_upsampled_part_of_a_concat(act: Any, tmp_path: Path) -> None:
    """It is rounded before it is upsampled, where the engine knows whether it has a sign."""
    paddle.seed(0)
    net = Upsampled(act)
    ranges = {"coarse": 2.0, "fine": 2.0, "last": 4.0}
    record = QuantRecord(QuantSettings(), [QuantLayer(name) for name in ranges], {})
    quantize_model(net, record, ranges)
    net.eval()
    x = np.random.default_rng(0).uniform(-1, 1, (1, 4, 8, 8)).astype("float32")
    program, _ = int8_of(net, x.shape, tmp_path)
    order = operators(program)
    assert order[order.index("nearest_interp_v2") - 1] == "dequantize_linear"
    expected = net(paddle.to_tensor(x)).numpy()
    assert_same_sums(run_one(program, x, tmp_path, onednn=False), expected)
    require_int8()
    found = run_one(program, x, tmp_path, int8=True)
    # The engine rounds what has no sign a second time, with that of the other part.
    assert np.linalg.norm(found - expected) < 0.01 * np.linalg.norm(expected)


class Resized(paddle.nn.Layer):
    """What a ReLU gives is read by a convolution, and at another size by another one."""

    def __init__(self, resize: Callable[[paddle.Tensor], paddle.Tensor]) -> None:
        super().__init__()
        self.resize = resize
        self.first = Conv2D(2, 4, 1, bias_attr=False)
        self.direct = Conv2D(4, 3, 1, bias_attr=False)
        self.resized = Conv2D(4, 2, 1, bias_attr=False)

    def forward(self, x: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
        y = F.relu(self.first(x))
        return self.direct(y), self.resized(self.resize(y))


@pytest.mark.parametrize(
    "resize",
    [lambda y: F.max_pool2d(y, 2, 2, ceil_mode=True), lambda y: F.interpolate(y, scale_factor=2)],
    ids=["maxima", "upsampled"],
)
def test_a_resized_tensor_in_the_engine_has_the_range_of_its_input(
    resize: Any, tmp_path: Path
) -> None:
    """Alone it would have a range of 1.2; the engine uses 0.8 and 255 steps."""
    paddle.seed(1)
    net = Resized(resize)
    trace = trace_plain(net, 1, 2, 9, 9)
    record = QuantRecord(
        QuantSettings(), find_quantizable_layers(net, trace, QuantSettings()).layers, {}
    )
    quantize_model(net, record, {"first": 1.0, "direct": 0.8, "resized": 1.2})
    net.eval()
    program, _ = int8_of(net, (1, 2, 9, 9), tmp_path)
    require_int8()
    x = np.random.default_rng(0).uniform(-1, 1, (1, 2, 9, 9)).astype(np.float32)
    found = list(engine_of(program, tmp_path, int8=True)({"x": x}).values())
    for left, right in zip(found, net(paddle.to_tensor(x))):
        # One step of an integer at the edge is far below; another range or sign is far above.
        assert np.linalg.norm(left - right.numpy()) < 2e-3 * np.linalg.norm(right.numpy())
