"""Losses from activations alone, on networks of which it is known what can be replaced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from paddle.nn import Conv2D
from ppdet.core.workspace import AttrDict

from slim_det.compress.prune.reconstruct import reconstruction as reconstruction_module
from slim_det.compress.prune.reconstruct.settings import Calibration
from slim_det.planning.sensitivity.error_curves import between, error_curves, measured_places
from slim_det.planning.sensitivity.result import SensitivityResult
from tests.compress.prune.reconstruct.nets import drawn_images
from tests.planning.sensitivity.test_detection_error import Boxes

IMAGES = drawn_images(4, (3, 32, 32))
RATIOS = (0.01, 0.25, 0.5, 0.6, 0.75, 0.9)


class Net(paddle.nn.Layer):
    """Reads all that ppdet's detectors read."""

    def forward(self, inputs: dict[str, paddle.Tensor]) -> Any:
        return self.computed(inputs["image"]), inputs["im_shape"] / inputs["scale_factor"]


class Linear(Net):
    """Eight channels that are linear in the three numbers of a pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = Conv2D(3, 8, 1), Conv2D(8, 4, 1)

    def computed(self, x: paddle.Tensor) -> paddle.Tensor:
        return self.head(self.stem(x))


class Single(Net):
    """Two layers of one channel, side by side, tied to one of two: no channel can go."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = Conv2D(3, 1, 1), Conv2D(3, 1, 1)
        self.both, self.head = Conv2D(3, 2, 1), Conv2D(2, 4, 1)

    def computed(self, x: paddle.Tensor) -> paddle.Tensor:
        return self.head(paddle.concat([self.left(x), self.right(x)], 1) + self.both(x))


@pytest.fixture
def curves(ppdet_registered: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Error curves of a network on drawn images."""
    sizes = {"im_shape": np.full((1, 2), 32, "float32"), "scale_factor": np.ones((1, 2), "float32")}
    monkeypatch.setattr(
        reconstruction_module, "unlabelled_images", lambda most, folder: ("drawn", [*"0123"])
    )
    monkeypatch.setattr(
        reconstruction_module,
        "image_batches",
        lambda cfg, paths: ((path, {"image": IMAGES[int(path)], **sizes}) for path in paths),
    )
    (tmp_path / "w.pdparams").write_bytes(b"weights")
    reader = {"inputs_def": {"image_shape": [3, 32, 32]}}
    cfg = AttrDict(TestReader=reader, weights=str(tmp_path / "w.pdparams"))

    def run(net: paddle.nn.Layer, ratios: tuple[float, ...] = RATIOS) -> SensitivityResult:
        return error_curves(cfg, net, ratios, None, Calibration(positions=10**6, ridge=1e-8))

    return run


def test_what_the_others_replace_costs_nothing(curves: Any) -> None:
    """Up to five of eight channels go for nothing, the sixth and seventh do not."""
    paddle.seed(3)
    result = curves(Linear())
    row = result.groups["stem"]
    assert list(row) == list(RATIOS) and row[0.01] == 0.0
    assert max(row[ratio] for ratio in (0.25, 0.5, 0.6)) < 1e-5
    assert 0.001 < row[0.75] < row[0.9] < 1.0
    assert result.request.channels == {"stem": 8}
    assert result.metric == "reconstruction_error"
    assert result.conditions.num_images == len(IMAGES)


def test_where_every_layer_keeps_its_only_channel(curves: Any) -> None:
    assert set(curves(Single()).groups["left"].values()) == {0.0}


def test_of_a_detector(curves: Any) -> None:
    """Scores and boxes depend on four channels that are linear in three numbers of a pixel."""
    paddle.seed(0)
    result = curves(Boxes())
    assert result.metric == "detection_error"
    row = result.groups["stem"]
    assert row[0.01] == 0.0 and row[0.25] < 1e-5 < row[0.5] <= row[0.75] < 1.0


def test_of_a_detector_that_loses_nothing(curves: Any) -> None:
    """A ratio that removes no channel changes nothing, and nothing is run."""
    result = curves(Boxes(), (0.01,))
    assert result.metric == "detection_error" and result.groups["stem"] == {0.01: 0.0}


@pytest.mark.parametrize(
    ("errors", "places"),
    [
        ([0.0, 0.0], []),
        ([0.0, 0.1], [1]),
        ([0.1, 0.2, 0.3], [0, 1, 2]),
        ([0.1] * 9, [3, 5, 8]),
        ([0.0] * 3 + [0.1] * 9, [6, 8, 11]),
    ],
)
def test_which_ratios_are_measured(errors: list[float], places: list[int]) -> None:
    assert measured_places(np.array(errors)) == places


@pytest.mark.parametrize(
    ("errors", "places", "measured", "expected"),
    [
        ([0.0, 0.0], [], [], [0.0, 0.0]),
        ([0.1, 0.2, 0.4], [0, 2], [0.01, 0.04], [0.01, 0.02, 0.04]),
        ([0.1, 0.2, 0.4], [0, 2], [0.01, 0.16], [0.01, 0.04, 0.16]),
        ([0.0, 0.1, 0.2], [2], [0.5], [0.0, 0.25, 0.5]),  # below the first both fall alike
        ([0.1, 0.2, 0.4], [0, 1, 2], [0.1, 0.05, 0.3], [0.1, 0.1, 0.3]),  # noise
    ],
)
def test_between_measured_points(
    errors: list[float], places: list[int], measured: list[float], expected: list[float]
) -> None:
    found = between(np.array(errors), places, measured)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
