"""Which images are used, and what is counted on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest

from slim_det.compress.images import calibration_images
from slim_det.compress.quantize.calibrate import collect
from slim_det.compress.quantize.record import QuantLayer
from slim_det.core.errors import ConfigError, DataError, QuantError
from tests.compress.quantize.small_nets import small_net, state
from tests.support import assert_same_sums

LAYERS = [QuantLayer("first", "norm"), QuantLayer("left"), QuantLayer("right", shares="left")]


def file_order(root: Path, part: str) -> list[str]:
    text = (root / "annotations" / f"instances_{part}.json").read_text()
    return [image["file_name"] for image in json.loads(text)["images"]]


@pytest.mark.parametrize("count", [1, 5, 16])
def test_first_images_in_the_order_of_the_file(tiny_cfg: Any, shapes: Path, count: int) -> None:
    found = calibration_images(count)[1]
    assert [Path(path).name for path in found] == file_order(shapes, "train")[:count]
    assert found == calibration_images(count)[1]
    assert all(Path(path).is_file() for path in found)


def test_more_images_than_there_are(tiny_cfg: Any) -> None:
    with pytest.raises(DataError, match="TrainDataset has 16 images, 17 are asked for"):
        calibration_images(17)


@pytest.mark.parametrize("count", [0, -1, True, 2.0])
def test_no_images(tiny_cfg: Any, count: Any) -> None:
    with pytest.raises(ConfigError, match="images: .* is not valid; expected a whole number >= 1"):
        calibration_images(count)


def test_evaluation_images_where_there_are_none_to_train(
    tiny_cfg: Any, shapes: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny_cfg["TrainDataset"]["anno_path"] = "gone.json"
    name, found = calibration_images(6)
    assert name == "EvalDataset"
    assert [Path(path).name for path in found] == file_order(shapes, "val")
    assert "calibration on EvalDataset: TrainDataset cannot be read" in caplog.text
    with pytest.raises(DataError, match="EvalDataset has 6 images, 7 are asked for"):
        calibration_images(7)
    tiny_cfg["EvalDataset"]["anno_path"] = "gone.json"
    with pytest.raises(DataError, match="EvalDataset cannot be read"):
        calibration_images(6)


def test_what_a_layer_reads_is_counted(tiny_cfg: Any) -> None:
    net = small_net()
    images = calibration_images(5)[1]
    found = collect(net, LAYERS, tiny_cfg, images)
    assert list(found) == ["first", "left"]
    seen = net.inputs_seen
    assert [x.shape for x in seen] == [(1, 3, 96, 96)] * 5
    assert len({x.tobytes() for x in seen}) == 5  # five different images
    assert found["first"].maxima == [float(np.abs(x).max()) for x in seen]
    assert found["first"].count == 5 * 3 * 96 * 96
    hidden = [net.norm(net.first(paddle.to_tensor(x))) for x in seen]
    assert_same_sums(found["left"].maxima, [float(h.max()) for h in hidden])
    assert found["left"].count == 5 * 4 * 96 * 96


def test_the_batch_size_changes_nothing(tiny_cfg: Any) -> None:
    """Images run one at a time, whatever the batch size of the reader."""
    net = small_net()
    images = calibration_images(5)[1]
    single = collect(net, LAYERS, tiny_cfg, images)
    tiny_cfg["TestReader"]["batch_size"] = 2
    double = collect(net, LAYERS, tiny_cfg, images)
    assert [len(seen) for seen in net.inputs_seen] == [1] * 10
    for name, one in single.items():
        assert_same_sums(one.maxima, double[name].maxima)
        assert one.count == double[name].count


def test_the_model_is_left_as_it_was(tiny_cfg: Any) -> None:
    net = small_net()
    net.train()
    net.norm.training = False
    before = state(net)
    collect(net, LAYERS, tiny_cfg, calibration_images(2)[1])
    assert net.training and net.first.training and not net.norm.training
    after = state(net)
    assert all(np.array_equal(before[k], after[k]) for k in before)
    assert not net.first._forward_pre_hooks and not net.left._forward_pre_hooks


def test_values_that_are_not_finite(tiny_cfg: Any) -> None:
    net = small_net()
    net.norm.bias.set_value(np.array([np.inf, 0, 0, 0], "float32"))
    with pytest.raises(QuantError, match="'left' reads a value that is not finite"):
        collect(net, LAYERS, tiny_cfg, calibration_images(1)[1])
    assert not net.first._forward_pre_hooks


def test_a_layer_that_does_not_run(tiny_cfg: Any) -> None:
    net = small_net()
    net.idle = paddle.nn.Conv2D(1, 1, 1)
    with pytest.raises(QuantError, match="'idle' did not run on the calibration images"):
        collect(net, [QuantLayer("idle")], tiny_cfg, calibration_images(1)[1])
