"""The change of scores and boxes, on a detector small enough to compute it by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle.nn import Conv2D
from ppdet.modeling import ops

from slim_det.planning.sensitivity import detection_error
from slim_det.planning.sensitivity.detection_error import DetectionErrors, suppression
from slim_det.planning.sensitivity.partial_inference import DetectorProgram, save_program
from tests.planning.sensitivity.test_partial_inference import SIDE, batch_of, two_branches

Images = list[dict[str, np.ndarray]]


class Boxes(paddle.nn.Layer):
    """A box of three classes at every pixel, from two layers behind a stem."""

    def __init__(self, background: int = -1) -> None:
        super().__init__()
        self.stem, self.what, self.where = Conv2D(3, 4, 1), Conv2D(4, 3, 1), Conv2D(4, 2, 1)
        # Class 0 is found everywhere, class 1 somewhere, class 2 nowhere.
        self.what.bias.set_value(np.array([3.0, 0.0, -9.0], "float32"))
        self.background = background

    def decoded(self, image: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Scores [N, 3, P] and boxes [N, P, 4]."""
        x = self.stem(image)
        corner = self.where(x).flatten(2).transpose([0, 2, 1])
        return F.sigmoid(self.what(x).flatten(2)), paddle.concat([corner, corner + 5.0], 2)

    def forward(self, inputs: dict[str, paddle.Tensor]) -> Any:
        scores, boxes = self.decoded(inputs["image"])
        boxes = boxes * inputs["scale_factor"][0, 0] + 0.0 * inputs["im_shape"][0, 0]
        found, count, _ = ops.multiclass_nms(
            boxes, scores, 0.01, 100, 10, 0.5, background_label=self.background
        )
        return {"bbox": found, "bbox_num": count}


@pytest.fixture
def images() -> Images:
    return [{name: value[i : i + 1] for name, value in batch_of(3).items()} for i in range(3)]


def errors_of(net: Boxes, images: Images, folder: Path) -> DetectionErrors:
    save_program(net, (SIDE, SIDE), folder)
    program = DetectorProgram(folder, 1)
    op = suppression(program)
    assert op is not None
    return DetectionErrors(program, op, images, [[net.what.weight.name], [net.where.weight.name]])


def decoded(net: Boxes, images: Images) -> tuple[np.ndarray, np.ndarray]:
    scores, boxes = net.decoded(paddle.to_tensor(np.concatenate([one["image"] for one in images])))
    return scores.numpy().astype(np.float64), boxes.numpy().astype(np.float64)


def test_no_change(images: Images, tmp_path: Path) -> None:
    paddle.seed(0)
    net = Boxes()
    errors = errors_of(net, images, tmp_path)
    same = {net.what.weight.name: net.what.weight.numpy()}
    assert errors.measure([same]) == [pytest.approx(0.0, abs=1e-12)]


def test_other_scores(images: Images, tmp_path: Path) -> None:
    """The mean over the two classes that are found; weight and bias change together."""
    paddle.seed(0)
    net = Boxes()
    errors = errors_of(net, images, tmp_path)
    before, _ = decoded(net, images)
    weight, bias = net.what.weight.numpy() * 0.5, net.what.bias.numpy() - 0.2
    changes = {net.what.weight.name: weight, net.what.bias.name: bias}
    (found,) = errors.measure([changes])
    net.what.weight.set_value(weight)
    net.what.bias.set_value(bias)
    after, _ = decoded(net, images)
    size = np.square(before).sum((0, 2))
    assert (before.max((0, 2)) >= 0.5).tolist() == [True, True, False]
    assert found == pytest.approx((np.square(after - before).sum((0, 2)) / size)[:2].mean(), 1e-4)


@pytest.mark.parametrize("background", [-1, 0])
def test_moved_boxes(images: Images, background: int, tmp_path: Path) -> None:
    """All boxes of five pixels move by half a pixel in x: 0.1 of their size in two of four sides.

    The background class does not count, whatever its scores are.
    """
    paddle.seed(0)
    net = Boxes(background)
    errors = errors_of(net, images, tmp_path)
    weight, bias = net.where.weight.numpy(), net.where.bias.numpy() + np.float32([0.5, 0.0])
    moved = {net.where.weight.name: weight, net.where.bias.name: bias}
    still = {net.where.weight.name: weight, net.where.bias.name: net.where.bias.numpy()}
    assert errors.measure([moved, still, moved]) == pytest.approx([0.005, 0.0, 0.005], abs=1e-6)


def test_nothing_is_found(images: Images, tmp_path: Path) -> None:
    """All classes count if none is found: half of each score is an error of a quarter."""
    paddle.seed(0)
    net = Boxes()
    net.what.weight.set_value(np.zeros_like(net.what.weight.numpy()))
    low = np.full(3, -9.0, "float32")
    net.what.bias.set_value(low)
    errors = errors_of(net, images, tmp_path)
    half = np.log(0.5 / (1 + np.exp(9.0) - 0.5)).astype("float32")
    change = {
        net.what.weight.name: net.what.weight.numpy(),
        net.what.bias.name: np.full(3, half, "float32"),
    }
    assert errors.measure([change]) == pytest.approx([0.25], rel=1e-3)


def test_detectors_that_end_otherwise(tmp_path: Path) -> None:
    assert suppression(two_branches(tmp_path)[1]) is None


@pytest.mark.parametrize("name", ["what", "where"])
def test_each_change_is_run_with_its_own_weights(name: str, images: Images, tmp_path: Path) -> None:
    """An engine may keep the weights of its first run; the order of the changes tells."""
    paddle.seed(0)
    net = Boxes()
    errors = errors_of(net, images, tmp_path)
    weight = getattr(net, name).weight
    changes = [{weight.name: weight.numpy() * factor} for factor in (0.5, 1.0, 2.0)]
    found = errors.measure(changes)
    assert found[1] == pytest.approx(0.0, abs=1e-9) and min(found[0], found[2]) > 0.01
    assert errors.measure(changes[::-1])[::-1] == pytest.approx(found)


def test_images_one_by_one_or_together(
    images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where little is kept at once, each image is a batch; the errors are the same."""
    paddle.seed(0)
    net = Boxes()
    changes = [
        {net.where.weight.name: net.where.weight.numpy() * factor} for factor in (0.5, 1.0, 2.0)
    ]
    found = []
    for size in (detection_error.BATCH_MB, 0):
        monkeypatch.setattr(detection_error, "BATCH_MB", size)
        folder = tmp_path / str(size)
        folder.mkdir()
        found.append(errors_of(net, images, folder).measure(changes))
    assert found[0][0] > 0.0 < found[0][2] and found[0][1] == pytest.approx(0.0, abs=1e-12)
    assert found[0] == pytest.approx(found[1], rel=1e-5)
