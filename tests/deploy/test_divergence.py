"""The layer that an exporter got wrong is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from paddle.static import InputSpec

from slim_det.compress.quantize.model import program_ranges, quantize_model
from slim_det.compress.quantize.record import QuantLayer, QuantRecord
from slim_det.compress.quantize.settings import QuantSettings
from slim_det.core.errors import ExportError
from slim_det.deploy.divergence import first_divergence, layer_errors, pick_layer
from slim_det.deploy.preprocessing import deploy_settings
from slim_det.evaluate.preprocess import ArtifactReader
from slim_det.graph.folding import fold_batch_norm
from slim_det.graph.int8_program import write_int8
from slim_det.graph.program import DeployProgram
from tests.compress.quantize.small_nets import SmallNet, small_net
from tests.graph.nets import traced

LAYERS = [QuantLayer("first", "norm"), QuantLayer("left", unsigned=True)]


@pytest.mark.parametrize(
    "errors, name, jump",
    [
        ({"a": 0.0}, "a", False),
        ({"a": 0.01, "b": 0.04, "c": 0.02}, "b", False),  # below the threshold
        ({"a": 0.01, "b": 0.05, "c": 0.051}, "c", False),  # at it, then no jump
        ({"a": 0.01, "b": 0.06, "c": 1.0}, "b", True),  # the first, not the largest
        ({"a": 0.04, "b": 0.12, "c": 0.3}, "c", False),  # three times as much is no jump
        ({"a": 0.04, "b": 0.125, "c": 9.0}, "b", True),
        ({"a": float("nan"), "b": 9.0}, "a", True),
        ({"a": float("inf")}, "a", True),
    ],
)
def test_layer_that_is_picked(errors: dict[str, float], name: str, jump: bool) -> None:
    found = pick_layer(errors)
    assert (found.name, found.jump) == (name, jump)
    assert f"'{name}'" in str(found) and "\n" not in str(found)


@pytest.fixture
def net() -> SmallNet:
    """`right` stays in float; ranges hold what pictures have."""
    model = small_net()
    record = QuantRecord(QuantSettings(), LAYERS, {"right": "to see"})
    quantize_model(model, record, {"first": 3.0, "left": 4.0})
    return model


@pytest.fixture
def program(net: SmallNet, tmp_path: Path) -> DeployProgram:
    made = traced(net, {"image": InputSpec([1, 3, 96, 96], "float32", "image")}, tmp_path)
    fold_batch_norm(made)
    write_int8(made, program_ranges(net))
    return made


@pytest.fixture
def images(shapes: Path) -> list[str]:
    return [str(path) for path in sorted((shapes / "images").iterdir())[:2]]


@pytest.fixture
def cfg(fresh_config: Any, tiny: Path) -> Any:
    from slim_det.training.config import load_config

    return load_config(tiny)


def reader_of(cfg: Any) -> ArtifactReader:
    """What the program's images would be read by."""
    return ArtifactReader(deploy_settings(cfg, (96, 96)))


def batch(seed: int = 0) -> dict[str, paddle.Tensor]:
    image = np.random.default_rng(seed).normal(size=(1, 3, 96, 96)).astype("float32")
    return {"image": paddle.to_tensor(image)}


def weight_of(net: SmallNet, name: str) -> str:
    return str(dict(net.named_parameters())[f"{name}.weight"].name)


def test_no_image(net: SmallNet, program: DeployProgram) -> None:
    assert layer_errors(net, program, []) == {"first": 0.0, "left": 0.0, "right": 0.0}


def test_sound_program(net: SmallNet, program: DeployProgram) -> None:
    """In the order of execution, batch norm and bias included; nothing stays on the model."""
    errors = layer_errors(net, program, [(batch(), batch())])
    assert list(errors) == ["first", "left", "right"]
    assert max(errors.values()) < 0.02
    assert not any(layer._forward_post_hooks for layer in net.sublayers())


@pytest.mark.parametrize("name", ["first", "left"])
def test_scale_that_is_wrong(
    net: SmallNet, program: DeployProgram, cfg: Any, name: str, images: list[str]
) -> None:
    """Twice as large: the layer gives about twice as much, so its error is near 1."""
    scale = f"{weight_of(net, name)}.scale"
    program.set_value(scale, program.value(scale) * 2)
    found = first_divergence(net, program, cfg, images, reader_of(cfg))
    assert found.name == name and found.jump and found.error > 0.3


def test_bias_of_batch_norm_that_is_lost(net: SmallNet, program: DeployProgram) -> None:
    bias = f"{weight_of(net, 'first')}.folded_bias"
    program.set_value(bias, program.value(bias) * 0)
    assert pick_layer(layer_errors(net, program, [(batch(), batch())])).name == "first"


def test_float_layer_that_is_wrong(net: SmallNet, program: DeployProgram) -> None:
    name = weight_of(net, "right")
    program.set_value(name, -program.value(name))
    found = pick_layer(layer_errors(net, program, [(batch(), batch())]))
    assert found.name == "right" and found.error == pytest.approx(2.0, abs=0.05)


def test_program_of_another_model(net: SmallNet, program: DeployProgram, cfg: Any) -> None:
    for op in program.convolutions:
        program.rename_input(op, op.input("Filter"), "another")
    with pytest.raises(ExportError, match="no convolution in common"):
        first_divergence(net, program, cfg, [], reader_of(cfg))


def test_model_that_is_not_quantized(program: DeployProgram) -> None:
    with pytest.raises(ExportError, match="is not quantized"):
        layer_errors(small_net(), program, [(batch(), batch())])
