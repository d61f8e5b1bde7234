"""Names of layers in every spelling, on a real detector and on small nets."""

from __future__ import annotations

import paddle
import pytest

from slim_det.core.errors import LayerError
from slim_det.detectors.layer_finder import LayerFinder
from slim_det.detectors.yolov3_head import YOLO_HEAD_LAYERS, from_historical, is_class_output
from slim_det.graph.layer_names import layer_names
from tests.support import build_detector

BLOCK = {
    "0.0": ("conv_module.conv0", 0),
    "0.1": ("conv_module.conv1", 1),
    "1.0": ("conv_module.conv2", 2),
    "1.1": ("conv_module.conv3", 3),
    "2": ("conv_module.route", 4),
    "tip": ("tip", 5),
}
"""Historical name within a block -> module path within it, place in the order of creation."""

FIRST_AUTOMATIC = (27, 34, 41)
"""Number of each block's first convolution behind MobileNetV1."""

THE_18 = [
    (
        f"yolo_block.{block}.{old}.conv.weights",
        f"neck.yolo_block.{block}.{path}",
        f"conv2d_{FIRST_AUTOMATIC[block] + place}.w_0",
    )
    for block in range(3)
    for old, (path, place) in BLOCK.items()
]


@pytest.fixture(scope="module")
def finder() -> LayerFinder:
    return LayerFinder(build_detector("yolov3/yolov3_mobilenet_v1_270e_coco"))


def test_the_list_of_the_18_is_in_the_historical_order() -> None:
    assert [path for _, path, _ in THE_18] == list(YOLO_HEAD_LAYERS)


@pytest.mark.parametrize(("old", "path", "automatic"), THE_18)
def test_all_spellings_mean_the_same_weight(
    finder: LayerFinder, old: str, path: str, automatic: str
) -> None:
    weight = [f"{path}.conv.weight"]
    assert path in finder.paths
    for spelling in (old, old.replace(".weights", ".bias"), old.removesuffix(".conv.weights")):
        assert finder.find(spelling) == weight
    for spelling in (path, f"{path}.conv", f"{path}.conv.weight", automatic):
        assert finder.find(spelling) == weight
    assert finder.find(path[:-1] + "?") != []
    assert weight[0] in finder.find(path[:-1] + "*")


@pytest.mark.parametrize("old", ["scale", "offset", "mean", "var"])
def test_a_historical_batch_norm_names_its_layer(finder: LayerFinder, old: str) -> None:
    weight = ["neck.yolo_block.2.conv_module.conv3.conv.weight"]
    assert finder.find(f"yolo_block.2.1.1.bn.{old}") == weight


@pytest.mark.parametrize(
    ("old", "weight"),
    [
        ("yolo_transition.0.conv.weights", "neck.yolo_transition.0.conv.weight"),
        ("yolo_transition.1.conv.weights", "neck.yolo_transition.1.conv.weight"),
        ("yolo_output.0.conv.weights", "yolo_head.yolo_output.0.weight"),
        ("yolo_output.2.conv.bias", "yolo_head.yolo_output.2.weight"),
    ],
)
def test_historical_names_outside_the_blocks(finder: LayerFinder, old: str, weight: str) -> None:
    assert finder.find(old) == [weight]


@pytest.mark.parametrize(
    ("automatic", "path"),
    [
        ("conv2d_0.w_0", "backbone.conv1"),
        ("conv2d_33.w_0", "neck.yolo_transition.0"),
        ("conv2d_40.w_0", "neck.yolo_transition.1"),
        ("conv2d_47.w_0", "yolo_head.yolo_output.0"),
        ("conv2d_49.w_0", "yolo_head.yolo_output.2"),
    ],
)
def test_automatic_names_of_the_table(finder: LayerFinder, automatic: str, path: str) -> None:
    assert finder.find(automatic) == finder.find(path)


@pytest.mark.parametrize(
    ("glob", "count"),
    [
        ("neck.yolo_block.*", 18),
        ("neck.yolo_block.0.*", 6),
        ("neck.yolo_block.?.tip", 3),
        ("neck.yolo_block.[01].conv_module.conv?", 8),
        ("*.conv.weight", 18 + 2),
        ("yolo_head.*", 3),
        ("*", 50),
    ],
)
def test_globs(finder: LayerFinder, glob: str, count: int) -> None:
    found = finder.find(glob)
    assert len(found) == len(set(found)) == count


@pytest.mark.parametrize(
    ("spelling", "words"),
    [
        ("neck.yolo_block.0", "'neck.yolo_block.0' holds 6 layers; name one of them, or all of"),
        ("neck", "'neck' holds 20 layers"),
        ("neck.yolo_block.0.conv_module.conv", "did you mean 'neck.yolo_block.0.conv_module.conv"),
        ("neck.yolo_blok.0.tip", "unknown layer 'neck.yolo_blok.0.tip'; did you mean 'neck.yolo"),
        ("yolo_block.7.tip.conv.weights", "unknown layer 'yolo_block.7.tip.conv.weights'; did"),
        ("conv2d_270.w_0", "unknown layer 'conv2d_270.w_0'; did you mean 'conv2d_27.w_0'?"),
        ("NECK.*", "no layer matches 'NECK.*'"),
        ("", "unknown layer ''; valid: backbone.conv1, "),
        ("zzzzzz", "unknown layer 'zzzzzz'; valid: "),
    ],
)
def test_wrong_names_show_the_nearest(finder: LayerFinder, spelling: str, words: str) -> None:
    with pytest.raises(LayerError) as caught:
        finder.find(spelling)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("spelling", [None, 3, 0.5, ["neck"]])
def test_a_name_is_text(finder: LayerFinder, spelling: object) -> None:
    with pytest.raises(LayerError, match="is not text; expected a layer name"):
        finder.find(spelling)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name", ["", "conv", "yolo_block.0.9.conv.weights", "neck.yolo_block.0.tip"]
)
def test_other_names_pass_the_historical_table(name: str) -> None:
    assert from_historical(name) == name


def test_only_the_last_layers_depend_on_the_classes() -> None:
    assert is_class_output("yolo_head.yolo_output.0.weight")
    assert is_class_output("yolo_head.yolo_output.2.bias")
    assert not is_class_output("neck.yolo_block.0.tip.conv.weight")


def test_paths_stop_where_a_module_holds_more_than_one_weight() -> None:
    def pair(*layers: paddle.nn.Layer) -> paddle.nn.Sequential:
        return paddle.nn.Sequential(*layers)

    net = paddle.nn.Layer()
    net.alone = pair(paddle.nn.Conv2D(3, 4, 1), paddle.nn.BatchNorm2D(4))
    net.two = pair(paddle.nn.Linear(4, 4), paddle.nn.Linear(4, 2))
    net.deep = pair(pair(paddle.nn.Conv2D(2, 2, 1)))
    net.last = paddle.nn.Linear(2, 2)
    assert layer_names(net) == {
        "alone.0.weight": "alone",
        "two.0.weight": "two.0",
        "two.1.weight": "two.1",
        "deep.0.0.weight": "deep.0",
        "last.weight": "last",
    }
    finder = LayerFinder(net)
    assert finder.find("deep") == finder.find("deep.0.0") == ["deep.0.0.weight"]
    assert finder.find("two.?") == ["two.0.weight", "two.1.weight"]


def test_weights_of_one_module_keep_their_full_names() -> None:
    net = paddle.nn.Layer()
    net.cell = paddle.nn.GRUCell(3, 2)
    net.fc = paddle.nn.Linear(2, 2)
    names = {"cell.weight_ih": "cell.weight_ih", "cell.weight_hh": "cell.weight_hh"}
    assert layer_names(net) == {**names, "fc.weight": "fc"}
    assert LayerFinder(net).find("cell.*") == list(names)


def test_a_net_without_weights_has_no_names() -> None:
    assert layer_names(paddle.nn.ReLU()) == {}
    with pytest.raises(LayerError, match="unknown layer 'x'$"):
        LayerFinder(paddle.nn.ReLU()).find("x")
