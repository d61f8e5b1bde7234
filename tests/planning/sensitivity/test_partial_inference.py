"""Partial programs hold what lies downstream of a cut, and with masks they are the pruned model."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest

from slim_det.compress.prune.groups import find_groups
from slim_det.compress.prune.plan import apply_plan
from slim_det.compress.prune.pruner import Pruner
from slim_det.core.errors import ExportError, LayerError
from slim_det.evaluate.evaluation import dygraph_predictor
from slim_det.graph.operators import OPERATORS, Operator
from slim_det.graph.trace import trace_detector
from slim_det.planning.sensitivity.candidates import make_targets
from slim_det.planning.sensitivity.cuts import mask_name, mask_value
from slim_det.planning.sensitivity.partial_inference import (
    DetectorProgram,
    PartialProgram,
    save_program,
)
from slim_det.training import session
from slim_det.training.config import load_config
from tests.detections import rows_of
from tests.support import assert_same_sums, restored_config
from tests.trained import Detector, enliven

SIDE = 8


class TwoBranches(paddle.nn.Layer):
    """stem 3->4; left 4->6 and leaf 6->6; right 4->6; both are multiplied into the boxes."""

    def __init__(self, count: bool = True) -> None:
        super().__init__()
        self.stem = paddle.nn.Conv2D(3, 4, 1, bias_attr=False)
        self.left = paddle.nn.Conv2D(4, 6, 1, bias_attr=False)
        self.leaf = paddle.nn.Conv2D(6, 6, 1, bias_attr=False)
        self.right = paddle.nn.Conv2D(4, 6, 1, bias_attr=False)
        self.count = count

    def forward(self, inputs: dict[str, paddle.Tensor]) -> Any:
        x = F.relu(self.stem(inputs["image"]))
        both = self.leaf(F.relu(self.left(x))) * self.right(x)
        boxes = both.transpose([0, 2, 3, 1]).reshape([-1, 6]) * inputs["scale_factor"][0, 0]
        # As after an NMS, the counts hang on the boxes.
        count = inputs["im_shape"][:, 0] + 0.0 * both[:, 0, 0, 0]
        if not self.count:
            return {"bbox": boxes * count[0]}
        return {"bbox": boxes, "bbox_num": paddle.cast(count, "int32")}


def two_branches(folder: Path) -> tuple[TwoBranches, DetectorProgram]:
    paddle.seed(0)
    net = TwoBranches()
    save_program(net, (SIDE, SIDE), folder)
    return net, DetectorProgram(folder, 1)


def batch_of(images: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(images)
    return {
        "image": rng.normal(size=(images, 3, SIDE, SIDE)).astype("float32"),
        "im_shape": np.full((images, 2), SIDE * SIDE, "float32"),
        "scale_factor": np.ones((images, 2), "float32"),
    }


def types_of(partial: PartialProgram) -> Counter[str]:
    return Counter(op.type for op in partial.operators)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[TwoBranches, DetectorProgram]:
    return two_branches(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def thin(
    tmp_path_factory: pytest.TempPathFactory, detector: Detector
) -> tuple[paddle.nn.Layer, DetectorProgram]:
    folder = tmp_path_factory.mktemp("program")
    with restored_config():
        cfg = load_config(detector.config)
        model = session.model_with_weights(cfg, cfg.weights)
        save_program(model, (96, 96), folder)
    return model, DetectorProgram(folder, 1)


def test_no_reader_leaves_nothing_to_run(small: Any) -> None:
    partial = small[1].partial([])
    assert partial.operators == () and partial.cached == ()


def test_complete_program_is_the_model(small: Any) -> None:
    """Rows of six for every pixel, for one image and for three."""
    net, program = small
    for images in (1, 3):
        batch = batch_of(images)
        want = net({name: paddle.to_tensor(value) for name, value in batch.items()})
        outputs = program.complete_engine()(batch)
        rows = outputs[program.outputs[0]]
        assert [len(boxes) for boxes in program.boxes(outputs)] == [SIDE * SIDE] * images
        assert_same_sums(rows, want["bbox"].numpy())


def test_last_layer_of_a_branch_is_all_that_runs(small: Any) -> None:
    """`leaf` reads what `left` gave; `right` and its product enter from outside."""
    net, program = small
    partial = program.partial([net.leaf.weight.name])
    types = types_of(partial)
    assert types["conv2d"] == 1 and types["relu"] == 0
    by_weight = {op.input("Filter"): op for op in program.program.convolutions}
    left = by_weight[net.leaf.weight.name].input("Input")
    right = by_weight[net.right.weight.name].output("Output")
    assert {left, right} <= set(partial.cached)
    assert "image" not in partial.cached and "im_shape" not in partial.cached
    assert program.bytes_an_image([left]) == 4 * 6 * SIDE * SIDE
    assert program.bytes_an_image(["image", right]) == 4 * (3 + 6) * SIDE * SIDE


def test_two_readers_of_one_tensor_share_the_cached_activations(small: Any) -> None:
    """Cutting `stem` runs all but `stem` and its activation."""
    net, program = small
    readers = [net.left.weight.name, net.right.weight.name]
    partial = program.partial(readers)
    types = types_of(partial)
    assert types["conv2d"] == 3 and types["relu"] == 1
    (stem,) = set(partial.cached) - {"scale_factor"} - _constants(program, partial.cached)
    assert program.bytes_an_image([stem]) == 4 * 4 * SIDE * SIDE
    assert partial.readers == tuple(readers)


def _constants(program: DetectorProgram, names: tuple[str, ...]) -> set[str]:
    """Slices of `scale_factor`."""
    return {name for name in names if program.program.block.vars[name].shape in ((), (-1,), (1,))}


def test_masked_program_equals_the_sum_without_the_removed_terms(small: Any) -> None:
    """Against numpy: channels 0 and 2 of `stem` are zero; with all kept, the unpruned model."""
    net, program = small
    batch = batch_of(2)
    readers = (net.left.weight.name, net.right.weight.name)
    partial = program.partial(readers)
    cached = {**batch, **program.complete_engine(partial.cached)(batch)}
    engine = program.engine(partial)
    for kept in ([1, 3], [0, 1, 2, 3], [2]):
        keep = np.isin(np.arange(4), kept)
        masks = {mask_name(reader): mask_value(keep, 4, 1) for reader in readers}
        found = engine({**cached, **masks})[program.outputs[0]]
        assert_same_sums(found, _by_hand(net, batch["image"], kept))


def _by_hand(net: TwoBranches, image: np.ndarray, kept: list[int]) -> np.ndarray:
    weights = (net.stem, net.left, net.leaf, net.right)
    stem, left, leaf, right = (x.weight.numpy()[:, :, 0, 0].astype(float) for x in weights)
    pixels = image.transpose(0, 2, 3, 1).reshape(-1, 3).astype(float)
    x = np.maximum(pixels @ stem[kept].T, 0)
    return (np.maximum(x @ left[:, kept].T, 0) @ leaf.T) * (x @ right[:, kept].T)


def test_engine_serves_other_batches(small: Any) -> None:
    """An engine that was loaded once takes one image or five."""
    net, program = small
    partial = program.partial([net.leaf.weight.name])
    engine = program.engine(partial)
    mask = {mask_name(net.leaf.weight.name): mask_value(np.ones(6, bool), 4, 1)}
    for images in (5, 1):
        batch = batch_of(images)
        complete = program.complete_engine(partial.cached)(batch)
        found, rows = engine({**batch, **complete, **mask}), program.outputs[0]
        assert_same_sums(found[rows], complete[rows])


def test_engines_leave_no_files(tmp_path: Path) -> None:
    net, program = two_branches(tmp_path)
    before = sorted(tmp_path.iterdir())
    program.complete_engine()
    program.engine(program.partial([net.leaf.weight.name]))
    assert sorted(tmp_path.iterdir()) == before


def test_model_without_counts_is_refused(tmp_path: Path) -> None:
    save_program(TwoBranches(count=False), (SIDE, SIDE), tmp_path)
    with pytest.raises(ExportError, match="gives 1 results; expected boxes and their counts"):
        DetectorProgram(tmp_path, 1)


def test_reader_that_cannot_be_masked_is_refused(thin: Any) -> None:
    """Batch norm reads its scale, but not the channels of another layer."""
    model, program = thin
    name = next(n for n, _ in model.named_parameters() if n.endswith("batch_norm.weight"))
    with pytest.raises(LayerError, match="operator 'batch_norm' cannot be masked"):
        program.partial([dict(model.named_parameters())[name].name])


def test_table_says_what_can_be_masked(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator is refused for as long as its entry names no weight; all zeros leave nothing."""
    net, program = small
    name = net.leaf.weight.name
    monkeypatch.delitem(OPERATORS, "conv2d")
    with pytest.raises(LayerError, match="operator 'conv2d' cannot be masked"):
        program.partial([name])
    monkeypatch.setitem(OPERATORS, "conv2d", Operator(data="Input", weight="Filter"))
    partial, batch = program.partial([name]), batch_of(1)
    cached = {**batch, **program.complete_engine(partial.cached)(batch)}
    masks = {mask_name(name): mask_value(np.zeros(6, bool), 4, 1)}
    found = program.engine(partial)({**cached, **masks})
    assert cached[program.outputs[0]].any() and not found[program.outputs[0]].any()


@pytest.mark.parametrize("block", [0, 1, 2])
def test_tip_runs_its_own_output_alone(thin: Any, block: int) -> None:
    """One convolution and one decoding of three; what is common, the NMS, once."""
    model, program = thin
    every = Counter(op.type for op in program.program.ops)
    assert every["yolo_box"] == 3 and every["conv2d"] > 20
    output = dict(model.named_parameters())[f"yolo_head.yolo_output.{block}.weight"].name
    partial = program.partial([output])
    types = types_of(partial)
    assert (types["conv2d"], types["yolo_box"], types["batch_norm"]) == (1, 1, 0)
    assert types["multiclass_nms3"] == every["multiclass_nms3"] == 1
    assert "image" not in partial.cached


def test_first_layer_of_the_head_runs_nothing_of_the_backbone(thin: Any) -> None:
    """Of 7 x 3 convolutions, 3 outputs and 2 transitions, minus `conv0`, nothing is left out."""
    model, program = thin
    reader = dict(model.named_parameters())["neck.yolo_block.0.conv_module.conv1.conv.weight"]
    types = types_of(program.partial([reader.name]))
    assert types["conv2d"] == 3 * 6 + 3 + 2 - 1
    assert types["yolo_box"] == 3


class Architecture:
    """A detector with drawn weights, its program, and its cuts."""

    def __init__(self, config: Path, changes: dict[str, Any], folder: Path) -> None:
        from ppdet.core.workspace import merge_config

        self.cfg = load_config(config)
        merge_config(changes)
        rng = np.random.default_rng(0)
        images = rng.normal(size=(2, 3, 64, 64)).astype("float32")
        self.batch = {
            "image": images,
            "im_shape": np.full((2, 2), 64, "float32"),
            "scale_factor": np.ones((2, 2), "float32"),
        }
        model = session.build_model(self.cfg)
        enliven(model, [self.tensors()])
        self.state = {name: value.numpy() for name, value in model.state_dict().items()}
        self.trace = trace_detector(model, (64, 64))
        self.groups = find_groups(model, self.trace)
        self.model, self.folder = model, folder
        save_program(model, (64, 64), folder)
        self.program = DetectorProgram(folder, 1)

    def tensors(self) -> dict[str, paddle.Tensor]:
        return {name: paddle.to_tensor(value) for name, value in self.batch.items()}

    def really_cut(self, group: str, ratio: float, criterion: str) -> list[np.ndarray]:
        """The boxes of the model that the pruner leaves."""
        model = session.build_model(self.cfg)
        model.set_state_dict(self.state)
        pruner = Pruner(criterion, pruned_ratios={group: ratio})
        apply_plan(model, pruner.plan(model, self.trace, self.groups))
        return [rows_of(found) for found in dygraph_predictor(model)(self.tensors())]

    def masked(self, group: str, ratio: float, criterion: str) -> list[np.ndarray]:
        """The boxes of the partial program."""
        pruner = Pruner(criterion, pruned_ratios=0.5)
        (target,) = make_targets(self.model, self.trace, self.groups, [group], [ratio], pruner)
        partial = self.program.partial(target.readers)
        outputs = self.program.complete_engine(partial.cached)(self.batch)
        masks = target.cuts[0].masks
        engine = self.program.engine(partial)
        found = self.program.boxes(engine({**self.batch, **outputs, **masks}))
        return [rows_of(boxes) for boxes in found]


MOBILE_V3 = {
    "model_name": "small",
    "scale": 0.35,
    "feature_maps": [4, 9, 12],
    "with_extra_blocks": False,
    "extra_block_filters": [],
}
RESNET = {
    "depth": 18,
    "return_idx": [1, 2, 3],
    "freeze_at": -1,
    "freeze_norm": False,
    "norm_decay": 0.0,
}

ARCHITECTURES: dict[str, tuple[dict[str, Any], list[str]]] = {
    # depthwise convolutions, sums that tie several convolutions, gates, what a gate reads
    "MobileNetV3": (
        MOBILE_V3,
        [
            "backbone.conv1",
            "backbone.conv2.expand_conv",
            "backbone.conv3.linear_conv",
            "backbone.conv9.expand_conv",
            "backbone.conv10.linear_conv",
            "neck.yolo_transition.1",
        ],
    ),
    "MobileNet": ({}, ["backbone.conv1", "backbone.conv4_1._pointwise_conv"]),
    "ResNet": (RESNET, ["backbone.conv1.conv1", "backbone.res2.res2a.branch2b"]),
    "DarkNet": ({"depth": 53}, ["backbone.conv0", "backbone.downsample0.conv_bn_layer"]),
}


@pytest.mark.parametrize(
    "name",
    [
        "MobileNetV3",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("MobileNet", "ResNet", "DarkNet")),
    ],
)
def test_partial_program_finds_the_boxes_of_the_cut_model(
    name: str, tiny: Path, tmp_path: Path
) -> None:
    """Every group at two ratios by two criteria, and the cut does change the boxes.

    Rounding grows in deep models of drawn weights: what the two engines make of the complete model
    says by how much.
    """
    settings, names = ARCHITECTURES[name]
    changes = {"YOLOv3": {"backbone": name}, name: settings} if settings else {}
    with restored_config():
        architecture = Architecture(tiny, changes, tmp_path)
        program, predict = architecture.program, dygraph_predictor(architecture.model)
        outputs = program.complete_engine()(architecture.batch)
        complete = [rows_of(found) for found in program.boxes(outputs)]
        dygraph = [rows_of(found) for found in predict(architecture.tensors())]
        rounding = max(difference(left, right) for left, right in zip(complete, dygraph))
        assert rounding < 1e-3
        for group in names:
            for ratio, criterion in ((0.3, "l1_norm"), (0.6, "fpgm")):
                want = architecture.really_cut(group, ratio, criterion)
                found = architecture.masked(group, ratio, criterion)
                for left, right, before in zip(found, want, complete):
                    assert difference(left, right) < max(1e-4, 4 * rounding), group
                    assert len(before) != len(right) or difference(before, right) > 1e-2


def difference(left: np.ndarray, right: np.ndarray) -> float:
    """Largest relative difference; boxes whose scores are as good as equal may change places."""
    assert len(left) == len(right) > 0
    scale = np.array([1e-6, 1.0, 64.0, 64.0, 64.0, 64.0])  # class, score, pixels
    differences = np.abs(left[:, None] - right[None]) / scale
    differences[..., 1] /= right[None, :, 1]
    far = differences.max(-1)
    return max(far.min(0).max(), far.min(1).max())
