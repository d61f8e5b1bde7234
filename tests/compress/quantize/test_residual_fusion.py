"""Additions that read integers: which do, on nets whose answer is seen at once; the rounding."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle.nn import BatchNorm2D, Conv2D

from slim_det.compress.quantize.model import (
    keep_float,
    quantize_model,
    quantized_layers,
    signed_inputs,
)
from slim_det.compress.quantize.quantization_error import only_quantized
from slim_det.compress.quantize.record import QuantLayer, QuantRecord, RoundedOutput
from slim_det.compress.quantize.residual_fusion import giving_modules, rounded_tensors
from slim_det.compress.quantize.settings import QuantSettings
from slim_det.core.errors import QuantError
from tests.support import trace_plain


class Stem(paddle.nn.Layer):
    """A convolution, batch norm and an activation."""

    def __init__(self, activate: Callable[[paddle.Tensor], paddle.Tensor] | None = F.relu) -> None:
        super().__init__()
        self.pw = Conv2D(2, 2, 1, bias_attr=False)
        self.norm = BatchNorm2D(2)
        self.activate = activate

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        x = self.norm(self.pw(x))
        return x if self.activate is None else self.activate(x)


class Block(paddle.nn.Layer):
    """A residual block behind a stem, with a head that reads the sum.

    Args:
        end: Activation of the branch.
        makes_floats: Whether the stem's output goes through an operator in float.
        tapped: Whether the head reads the stem's output as well.
    """

    def __init__(
        self,
        end: Callable[[paddle.Tensor], paddle.Tensor] | None = None,
        makes_floats: bool = False,
        tapped: bool = False,
    ) -> None:
        super().__init__()
        self.stem = Stem()
        self.branch = Stem(end)
        self.head = Conv2D(2, 1, 1)
        self.makes_floats, self.tapped = makes_floats, tapped

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        x = self.stem(x)
        if self.makes_floats:
            x = 2 * x
        y = F.relu(self.branch(x) + x)
        return self.head(paddle.concat([x, y])) if self.tapped else self.head(y)


def found(net: paddle.nn.Layer, *quantized: str) -> list[tuple[list[str], list[str]]]:
    """Readers and producers of every tensor that an addition reads as integers."""
    trace = trace_plain(net, 1, 2, 4, 4)
    inputs, outputs = {}, {}
    for op in trace.ops:
        path = trace.parameters.get(op.input("Filter"), "").removesuffix(".weight")
        if path and path in quantized:
            inputs[path], outputs[op.output("Output")] = op.input("Input"), path
    return list(rounded_tensors(trace, inputs, outputs).values())


BOTH = ("stem.pw", "branch.pw")


def test_no_addition() -> None:
    assert found(paddle.nn.Sequential(Stem(), Conv2D(2, 2, 1)), "0.pw", "1") == []


@pytest.mark.parametrize("end", [None, F.relu])
def test_written_by_a_convolution(end: Callable[[paddle.Tensor], paddle.Tensor] | None) -> None:
    """The stem's kernel writes integers, which the addition reads however the branch ends."""
    assert found(Block(end), *BOTH) == [(["branch.pw"], ["stem.pw"])]


def test_part_of_a_convolution() -> None:
    """A float tensor, which the last kernel of a linear branch adds; it needs integers for that."""
    assert found(Block(makes_floats=True), *BOTH) == [(["branch.pw"], ["branch.pw"])]


def test_float_additions() -> None:
    """A float tensor that is added outside of kernels, or that nothing rounds."""
    assert found(Block(F.relu, makes_floats=True), *BOTH) == []
    assert found(Block(F.relu), "branch.pw") == []
    assert found(Block(), "stem.pw") == []
    assert found(Block()) == []


def test_a_float_tensor_that_is_read_in_float_as_well() -> None:
    assert found(Block(makes_floats=True, tapped=True), *BOTH) == []
    assert found(Block(tapped=True), *BOTH) == [(["branch.pw"], ["stem.pw"])]


def test_giving_module_is_the_innermost() -> None:
    net = paddle.nn.Sequential(paddle.nn.Sequential(Stem()), Block())
    image = paddle.randn([1, 2, 4, 4])
    readers = {"a": net[0][0].pw, "b": net[1].stem.pw, "c": net[1].branch.pw}
    assert giving_modules(net, lambda: net(image), readers) == {"b": "0.0", "c": "1.stem"}
    assert not any(layer._forward_post_hooks for layer in net.sublayers(include_self=True))


LAYERS = [QuantLayer("stem", "stem.norm"), QuantLayer("branch", "branch.norm", "", True)]
ROUNDED = [RoundedOutput("stem", ["branch"], ["stem"])]


def record(rounded: list[RoundedOutput]) -> QuantRecord:
    return QuantRecord(QuantSettings(), LAYERS, {}, {}, rounded)


def quantized_block(rounded: list[RoundedOutput], seed: int = 3) -> Block:
    paddle.seed(seed)
    net = Block()
    net.eval()
    quantize_model(net, record(rounded), {"stem": 3.0, "branch": 0.5})
    return net


def test_the_addition_reads_the_integers() -> None:
    """Multiples of 0.5 / 255, clipped at the range, where it read floats before."""
    seen: dict[str, np.ndarray] = {}
    image = 3 * paddle.randn([1, 2, 4, 4])
    for name, rounded in (("exact", []), ("rounded", ROUNDED)):
        net = quantized_block(rounded)

        def look(layer: paddle.nn.Layer, inputs: tuple[paddle.Tensor], name: str = name) -> None:
            seen[name] = inputs[0].numpy()

        net.branch.register_forward_pre_hook(look)
        seen[f"{name} out"] = net(image).numpy()
    steps = seen["rounded"] / (0.5 / 255)
    assert np.abs(steps - steps.round()).max() < 1e-3 and seen["rounded"].max() <= 0.5 + 1e-6
    assert seen["exact"].max() > 0.5
    inside = seen["exact"] <= 0.5
    assert np.abs(seen["exact"] - seen["rounded"])[inside].max() <= 0.5 / 255 / 2 + 1e-6
    assert not np.array_equal(seen["exact out"], seen["rounded out"])


def test_nothing_is_rounded_without_all_its_integers() -> None:
    image = 3 * paddle.randn([1, 2, 4, 4])

    def outputs(net: Block) -> list[np.ndarray]:
        values = []
        for names in ((), ("stem",), ("branch",)):
            with only_quantized(net, names):
                values.append(net(image).numpy())
        with signed_inputs(net):
            values.append(net(image).numpy())
        return values

    pairs = zip(outputs(quantized_block([])), outputs(quantized_block(ROUNDED)))
    assert all(np.array_equal(left, right) for left, right in pairs)
    back = [quantized_block(rounded) for rounded in ([], ROUNDED)]
    for net in back:
        keep_float(net, ["stem"], "by hand")
    assert np.array_equal(back[0](image).numpy(), back[1](image).numpy())


def test_a_range_learns_from_what_it_has_not_clipped() -> None:
    """The same average with and without, as if the convolution alone had seen the tensor."""
    image = 3 * paddle.randn([2, 2, 4, 4])
    limits = []
    for rounded in ([], ROUNDED):
        net = quantized_block(rounded)
        net.train()
        net(image).sum().backward()
        layer = quantized_layers(net)["branch"]
        limits.append(layer.activation.range())
        assert net.stem.pw.weight.grad.abs().sum() > 0
    assert limits[0] == limits[1] > 0.5


def test_record_round_trip_and_strangers(tmp_path) -> None:
    path = tmp_path / "r.quant.json"
    path.write_text(record(ROUNDED).to_json())
    assert QuantRecord.read(path).rounded == ROUNDED
    path.write_text(record(ROUNDED).to_json().replace('"producers": [', '"producers": [], "x": ['))
    with pytest.raises(QuantError, match="damaged"):
        QuantRecord.read(path)
    for stranger in (
        RoundedOutput("trunk", ["branch"], ["stem"]),
        RoundedOutput("stem", ["twig"], ["stem"]),
    ):
        with pytest.raises(QuantError, match="belongs to another model: it has no '(trunk|twig)'"):
            quantized_block([stranger])
