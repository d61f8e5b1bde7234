"""Which convolutions are quantized: nets whose answer is seen at once, and a real detector."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import paddle
import paddle.nn.functional as F
import pytest
from paddle.nn import BatchNorm2D, Conv2D, Conv2DTranspose, Linear, Sequential

from slim_det.compress.quantize.quantizable_layers import (
    SHARED,
    SKIPPED_AS_HEAD,
    SKIPPED_BY_MODEL,
    SKIPPED_BY_USER,
    QuantizableLayers,
    convolution_of,
    find_quantizable_layers,
)
from slim_det.compress.quantize.settings import QuantSettings
from slim_det.core.errors import ConfigError, LayerError, QuantError
from slim_det.graph.trace import trace_detector
from slim_det.training import session
from slim_det.training.config import load_config
from tests.blazeface import write_blazeface
from tests.compress.quantize.nets import make_net, make_record
from tests.support import build_detector, trace_plain


def sites_of(model: paddle.nn.Layer, *skip: str, channels: int = 2) -> QuantizableLayers:
    trace = trace_plain(model, 1, channels, 8, 8)
    return find_quantizable_layers(model, trace, QuantSettings(skip=skip))


def names_of(quantizable: QuantizableLayers) -> list[str]:
    return [layer.name for layer in quantizable.layers]


class Applied(paddle.nn.Layer):
    """Layers by name, and a function that runs them."""

    def __init__(self, function: Any, **layers: paddle.nn.Layer) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_sublayer(name, layer)
        self.function = function

    def forward(self, x: paddle.Tensor) -> Any:
        return self.function(self, x)


def test_no_convolution() -> None:
    with pytest.raises(QuantError, match="nothing to quantize: all 0 layers"):
        sites_of(Applied(lambda net, x: F.relu(x)))


def test_small_net() -> None:
    """In the order of running, with batch norm and who reads the same tensor."""
    quantizable, record = sites_of(make_net()), make_record()
    assert quantizable.layers == record.layers
    assert quantizable.kept_float == record.kept_float


def test_skip_by_name_and_glob() -> None:
    """The range of what is skipped goes to the next that reads the same tensor."""
    quantizable = sites_of(make_net(), "left", "s*m")
    assert names_of(quantizable) == ["middle", "right"]
    assert [layer.shares for layer in quantizable.layers] == ["", "middle"]
    assert quantizable.kept_float == {
        "stem": SKIPPED_BY_USER,
        "left": SKIPPED_BY_USER,
        "output": SKIPPED_BY_MODEL,
    }


@pytest.mark.parametrize(
    ("skip", "phrase"),
    [
        ("backbone.*", "skip: no layer matches 'backbone.*'"),
        ("lefft", "skip: unknown layer 'lefft'; did you mean 'left'?"),
        ("", "skip: unknown layer ''"),
    ],
)
def test_skip_that_matches_nothing(skip: str, phrase: str) -> None:
    with pytest.raises(ConfigError) as caught:
        sites_of(make_net(), skip, "stem")
    assert phrase in str(caught.value) and "\n" not in str(caught.value)


def test_all_skipped() -> None:
    with pytest.raises(QuantError, match="nothing to quantize: all 5 layers stay in float"):
        sites_of(make_net(), "*")


def test_convolution_that_runs_twice() -> None:
    """One range cannot be that of two inputs; in float it may run as often as it likes."""
    net = Applied(
        lambda net, x: net.one(net.two(net.two(x))), one=Conv2D(2, 2, 1), two=Conv2D(2, 2, 1)
    )
    for skipped, reason in (("", SHARED), ("two", SKIPPED_BY_USER)):
        quantizable = sites_of(net, *filter(None, [skipped]))
        assert names_of(quantizable) == ["one"] and quantizable.kept_float == {"two": reason}


def test_other_layers_stay_in_float() -> None:
    """A linear layer, even run twice, and a transposed convolution."""

    def run(net: Any, x: paddle.Tensor) -> paddle.Tensor:
        return net.fc(net.fc(net.up(net.conv(x)).mean([2, 3])))

    quantizable = sites_of(
        Applied(run, conv=Conv2D(2, 2, 1), up=Conv2DTranspose(2, 3, 2), fc=Linear(3, 3))
    )
    assert names_of(quantizable) == ["conv"]
    assert quantizable.kept_float == {
        "up": "conv2d_transpose has no int8 kernel",
        "fc": "matmul_v2 has no int8 kernel",
    }


def test_what_a_convolution_must_be() -> None:
    """Depthwise: yes; padded with something other than zeros, or of a class of its own: no."""

    class Own(Conv2D):
        """Whatever it does otherwise, it is not known here."""

    net = Sequential(
        ("deep", Conv2D(2, 2, 3, padding=1, groups=2)),
        ("mirror", Conv2D(2, 2, 3, padding=1, padding_mode="reflect")),
        ("own", Own(2, 2, 1)),
    )
    quantizable = sites_of(net)
    assert names_of(quantizable) == ["deep"]
    assert quantizable.kept_float == {
        "mirror": "it pads with 'reflect'",
        "own": "its layer is a Own, not a Conv2D",
    }


@pytest.mark.parametrize(
    ("function", "norm"),
    [
        (lambda net, x: net.norm(net.conv(x)), "norm"),
        (lambda net, x: F.relu(net.norm(net.conv(x))), "norm"),
        (lambda net, x: net.norm(F.relu(net.conv(x))), ""),
        (lambda net, x: net.norm(y := net.conv(x)) + y, ""),
        (lambda net, x: (net.norm(y := net.conv(x)), y), ""),
        (lambda net, x: net.conv(net.norm(x)), ""),
    ],
    ids=["alone", "relu behind", "relu between", "read twice", "returned too", "before"],
)
def test_norm_that_is_folded(function: Any, norm: str) -> None:
    """Only one that alone reads what the convolution gives."""
    net = Applied(function, conv=Conv2D(2, 2, 1, bias_attr=False), norm=BatchNorm2D(2))
    assert [layer.norm for layer in sites_of(net).layers] == [norm]


def test_norm_without_a_scale() -> None:
    net = Sequential(Conv2D(2, 2, 1, bias_attr=False), BatchNorm2D(2, weight_attr=False))
    assert [layer.norm for layer in sites_of(net).layers] == [""]


@pytest.mark.parametrize(
    ("function", "unsigned"),
    [
        (F.relu, True),
        (F.relu6, True),
        (F.leaky_relu, False),
        (lambda x: F.sigmoid(x), False),
        (lambda x: F.max_pool2d(F.relu(x), 2), False),
        (lambda x: F.relu(x) - 1, False),
        (lambda x: x, False),
    ],
    ids=["relu", "relu6", "leaky", "sigmoid", "pooled", "shifted", "none"],
)
def test_input_without_a_sign(function: Any, unsigned: bool) -> None:
    """What a ReLU itself gives, no more: the engine keeps no other tensor without a sign."""
    net = Applied(lambda net, x: net.conv(function(x)), conv=Conv2D(2, 2, 1))
    assert [layer.unsigned for layer in sites_of(net).layers] == [unsigned]


@pytest.mark.parametrize(
    ("run", "inputs"),
    [
        (
            lambda net, y: net.one(y) + net.two(F.max_pool2d(y, 3, 1, 1)),
            {"one": ("", True), "two": ("one", True)},
        ),
        (
            lambda net, y: net.two(F.max_pool2d(y, 3, 1, 1)) + net.one(y),
            {"two": ("", True), "one": ("two", True)},
        ),
        (
            lambda net, y: net.one(y) + net.two(F.avg_pool2d(y, 3, 1, 1)),
            {"one": ("", True), "two": ("", False)},
        ),
        (
            lambda net, y: net.one(F.max_pool2d(y, 3, 1, 1)) + net.two(y * 2),
            {"one": ("", False), "two": ("", False)},
        ),
    ],
    ids=["after", "before", "mean", "nobody reads it"],
)
def test_maxima_of_an_input(run: Any, inputs: dict[str, tuple[str, bool]]) -> None:
    """They have range and sign of a tensor that another one reads, in whatever order both run."""
    net = Applied(lambda net, x: run(net, F.relu(x)), one=Conv2D(2, 2, 1), two=Conv2D(2, 2, 1))
    assert {s.name: (s.shares, s.unsigned) for s in sites_of(net).layers} == inputs


def test_maxima_of_what_is_skipped() -> None:
    """A reader in float has no range to give."""
    net = Applied(
        lambda net, x: net.one(y := F.relu(x)) + net.two(F.max_pool2d(y, 3, 1, 1)),
        one=Conv2D(2, 2, 1),
        two=Conv2D(2, 2, 1),
    )
    (layer,) = sites_of(net, "one").layers
    assert (layer.name, layer.shares, layer.unsigned) == ("two", "", False)


def test_deformable_convolution(ppdet_registered: None) -> None:
    """It has no int8 kernel; the offsets are positions, which a coarse step would spoil."""
    from ppdet.modeling.layers import DeformableConvV2

    def run(net: Any, x: paddle.Tensor) -> paddle.Tensor:
        y = F.relu(net.norm(net.before(x)))
        return net.after(net.bent(y))

    net = Applied(
        run,
        before=Conv2D(2, 4, 1, bias_attr=False),
        norm=BatchNorm2D(4),
        bent=DeformableConvV2(4, 4, 3),
        after=Conv2D(4, 2, 1),
    )
    quantizable = sites_of(net)
    assert names_of(quantizable) == ["before", "after"]
    assert quantizable.kept_float == {
        "bent.conv_offset": "it places the samples of a deformable convolution",
        "bent.conv_dcn": "deformable_conv has no int8 kernel",
    }


def test_convolution_that_places_samples_and_runs_again() -> None:
    """In float once is in float always."""

    def run(net: Any, x: paddle.Tensor) -> paddle.Tensor:
        return net.place(net.bent(net.first(x), net.place(x)))

    bent = paddle.vision.ops.DeformConv2D(2, 2, 1)
    net = Applied(run, first=Conv2D(2, 2, 1), place=Conv2D(2, 2, 1), bent=bent)
    quantizable = sites_of(net)
    assert names_of(quantizable) == ["first"] and set(quantizable.kept_float) == {"place", "bent"}


def test_yolov3(ppdet_registered: None) -> None:
    """All but the raw outputs of the head: 27 layers of MobileNetV1, 18 of the blocks, 2 between.

    Tip and transition of a block read the same tensor.
    """
    model = build_detector("yolov3/yolov3_mobilenet_v1_bccd")
    quantizable = find_quantizable_layers(
        model, trace_detector(model, (64, 64)), QuantSettings(skip=())
    )
    assert quantizable.kept_float == {
        f"yolo_head.yolo_output.{i}": SKIPPED_BY_MODEL for i in range(3)
    }
    names = names_of(quantizable)
    assert len(names) == 27 + 18 + 2
    assert sum(name.startswith("backbone.") for name in names) == 27
    assert {layer.name: layer.shares for layer in quantizable.layers if layer.shares} == {
        f"neck.yolo_transition.{i}": f"neck.yolo_block.{i}.tip" for i in range(2)
    }
    # They read what a ReLU of the backbone made; in the head, they are leaky.
    unsigned = [name for name in names if name.startswith("backbone.")][1:]
    unsigned.append("neck.yolo_block.0.conv_module.conv0")
    assert [layer.name for layer in quantizable.layers if layer.unsigned] == unsigned
    norms = {path for path, layer in model.named_sublayers() if isinstance(layer, BatchNorm2D)}
    assert {layer.norm for layer in quantizable.layers} == norms


def test_blazeface(fresh_config: Any, tmp_path: Path) -> None:
    """All but boxes and scores; a shortcut reads maxima of what the block's first layer reads."""
    model = session.build_model(load_config(write_blazeface(tmp_path / "face.yml", tmp_path)))
    quantizable = find_quantizable_layers(model, trace_detector(model, (64, 64)), QuantSettings())
    head = [f"blaze_head.{name}{scale}" for scale in range(2) for name in ("boxes", "scores")]
    assert quantizable.kept_float == dict.fromkeys(head, SKIPPED_AS_HEAD)
    assert len(names_of(quantizable)) == 1 + 3 * 2 + 4 * 4 + 3
    assert {layer.name: layer.shares for layer in quantizable.layers if layer.shares} == {
        f"backbone.{block}.{block}_shortcut_conv": f"backbone.{block}.{block}1_dw"
        for block in ("blaze_1", "double_blaze_0", "double_blaze_2")
    }
    assert [layer.name for layer in quantizable.layers if not layer.unsigned] == ["backbone.conv1"]
    norms = {path for path, layer in model.named_sublayers() if isinstance(layer, BatchNorm2D)}
    assert {layer.norm for layer in quantizable.layers} == norms


def test_convolution_of_a_path() -> None:
    net = make_net()
    assert convolution_of(net, "stem") is net.stem[0]
    assert convolution_of(net, "output") is net.output
    with pytest.raises(LayerError, match="the model has no layer 'stem.0'"):
        convolution_of(net, "stem.0")
