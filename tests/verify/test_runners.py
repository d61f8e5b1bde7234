"""One small network through Paddle's executor, Paddle Inference and Paddle-Lite."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import paddle
import pytest
from paddle.static import InputSpec

from slim_det.core.errors import ExportError
from slim_det.deploy.lite.convert import has_paddlelite
from slim_det.evaluate.tensor_agreement import cosine
from slim_det.graph.integers import LayerRanges
from slim_det.graph.lite_program import write_lite_int8, write_out_leaky_relu
from slim_det.graph.program import DeployProgram, last_convolutions
from slim_det.graph.tracing import deployment_program
from slim_det.verify import runners
from slim_det.verify.runners import (
    dygraph_runner,
    lite_runner,
    program_runner,
    surrogate_runner,
)
from tests.detections import rows_of
from tests.support import assert_same_sums

needs_lite = pytest.mark.skipif(not has_paddlelite(), reason="paddlelite is not installed")


class Net(paddle.nn.Layer):
    """Two convolutions; the mean over the map is read as two boxes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = paddle.nn.Conv2D(3, 8, 3, stride=2, padding=1, bias_attr=False)
        self.second = paddle.nn.Conv2D(8, 12, 1, bias_attr=False)

    def forward(self, image: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
        raw = self.second(paddle.nn.functional.leaky_relu(self.first(image), 0.1))
        return raw.mean(axis=[2, 3]).reshape([2, 6]), paddle.full([1], 2, "int32")


@pytest.fixture
def net() -> Net:
    paddle.seed(0)
    with paddle.utils.unique_name.guard():
        return Net()


@pytest.fixture
def program(net: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DeployProgram:
    """The network as a program; its raw output is that of the second convolution."""
    with deployment_program():
        spec = [InputSpec([None, 3, 16, 16], "float32", "image")]
        function = paddle.jit.to_static(net.forward, input_spec=spec, full_graph=True)
        paddle.jit.save(function, str(tmp_path / "net"))
    loaded = DeployProgram.load(tmp_path / "net")
    convolution = [op for op in loaded.block.ops if op.type == "conv2d"][1]
    last = convolution.output("Output")[0]
    monkeypatch.setattr(DeployProgram, "raw_outputs", [last])
    return loaded


def pictures(count: int) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    sizes = {name: np.ones((1, 2), np.float32) for name in ("im_shape", "scale_factor")}
    return [
        {"image": rng.normal(size=(1, 3, 16, 16)).astype("float32"), **sizes} for _ in range(count)
    ]


def make_int8(net: Net, program: DeployProgram, weight_bits: int) -> None:
    batches = pictures(3)
    inputs = [np.concatenate([b["image"] for b in batches])]
    first = net.first(paddle.to_tensor(inputs[0]))
    inputs.append(paddle.nn.functional.leaky_relu(first, 0.1).numpy())
    scales = {}
    for layer, value in zip((net.first, net.second), inputs):
        weight = np.abs(layer.weight.numpy()).reshape(layer.weight.shape[0], -1).max(1)
        scales[layer.weight.name] = LayerRanges(float(np.abs(value).max()), weight, 8, 8)
    write_lite_int8(program, scales, weight_bits)


def test_no_images(program: DeployProgram) -> None:
    assert program_runner(program)([]) == []


def test_executor_is_the_network(net: Net, program: DeployProgram) -> None:
    batches = pictures(2)
    for batch, found in zip(batches, program_runner(program)(batches)):
        image = paddle.to_tensor(batch["image"])
        raw = net.second(paddle.nn.functional.leaky_relu(net.first(image), 0.1)).numpy()
        assert_same_sums(found.raw[0], raw)
        rows = raw.mean(axis=(2, 3)).reshape(2, 6)
        assert_same_sums(rows_of(found.boxes)[:, 1:], rows[:, 1:])


class Shared(paddle.nn.Layer):
    """A head that two scales share, with batch norm behind one of its convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.scores, self.sides = (paddle.nn.Conv2D(3, 2, 1) for _ in range(2))
        self.bn = paddle.nn.BatchNorm2D(2)

    def forward(self, inputs: dict[str, paddle.Tensor]) -> dict[str, paddle.Tensor]:
        for scale in (1.0, 2.0):
            image = inputs["image"] * scale
            raw = self.scores(image), self.bn(self.sides(image))
        boxes = (raw[0] + raw[1]).mean(axis=[2, 3]).tile([1, 3])
        return {"bbox": boxes, "bbox_num": paddle.full([1], 1, "int32")}


def test_a_shared_head_gives_an_output_for_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    net, (batch,) = Shared(), pictures(1)
    net.eval()
    monkeypatch.setattr(runners, "head_convolutions", last_convolutions)
    (found,) = dygraph_runner(net)([batch])
    image = paddle.to_tensor(batch["image"])
    with paddle.no_grad():
        both = [[net.scores(image * s), net.bn(net.sides(image * s))] for s in (1.0, 2.0)]
    expected = [tensor.numpy() for pair in both for tensor in pair]
    assert len(found.raw) == 4
    for left, right in zip(found.raw, expected):
        assert np.array_equal(left, right)


def test_program_without_boxes(program: DeployProgram) -> None:
    program.fetches = program.raw_outputs
    with pytest.raises(ExportError, match="outputs no boxes"):
        program_runner(program)(pictures(1))


@needs_lite
def test_paddle_lite_in_float(program: DeployProgram, tmp_path: Path) -> None:
    """Every image of a call, in order, though all share the memory of one output."""
    batches = pictures(3)
    expected = program_runner(program)(batches)
    found = lite_runner(program, tmp_path / "lite")(batches)
    assert len(found) == 3
    for left, right in zip(found, expected):
        assert_same_sums(left.raw[0], right.raw[0])
        assert_same_sums(rows_of(left.boxes), rows_of(right.boxes))
    assert not np.allclose(found[0].raw[0], found[1].raw[0])


@needs_lite
def test_seven_bit_surrogate(net: Net, program: DeployProgram, tmp_path: Path) -> None:
    """Paddle-Lite's x86 kernels give the integers of Paddle Inference, and nearly the network."""
    batches = pictures(3)
    exact = program_runner(program)(batches)
    make_int8(net, program, weight_bits=7)
    write_out_leaky_relu(program)
    inference = surrogate_runner(program)(batches)
    lite = lite_runner(program, tmp_path / "lite")(batches)
    for left, right, in_float in zip(lite, inference, exact):
        assert cosine(left.raw[0], right.raw[0]) > 0.9999
        assert 0.99 < cosine(right.raw[0], in_float.raw[0]) < 1.0


@needs_lite
def test_model_that_paddle_lite_refuses(program: DeployProgram, tmp_path: Path) -> None:
    run = lite_runner(program, tmp_path / "lite")
    (tmp_path / "lite_x86.nb").write_bytes(b"not a model")
    with pytest.raises(ExportError, match="Paddle-Lite failed") as caught:
        run(pictures(1))
    assert "\n" not in str(caught.value)
