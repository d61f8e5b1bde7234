"""Images are read one at a time; readers are given back as they were."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slim_det.core.errors import ConfigError
from slim_det.evaluate.images import eval_at, image_batches, require_one_size


@pytest.mark.parametrize("more", [{}, {"batch_size": 4}, {"batch_size": 9, "drop_last": True}])
def test_images_one_at_a_time(tiny_cfg: Any, shapes: Path, more: dict[str, Any]) -> None:
    """Whatever the batch size of the reader: all of them, in order, each with its own pixels."""
    paths = [str(path) for path in sorted((shapes / "images").iterdir())[:6]]
    expected = [np.asarray(batch["image"]) for _, batch in image_batches(tiny_cfg, paths)]
    tiny_cfg["TestReader"].update(more)
    found = list(image_batches(tiny_cfg, paths))
    assert [path for path, _ in found] == paths
    for (_, batch), image in zip(found, expected):
        assert image.shape == (1, 3, 96, 96)
        np.testing.assert_array_equal(batch["image"], image)
    assert len({image.tobytes() for image in expected}) == 6


def reader(*sizes: Any) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"Decode": {}}]
    steps += [{"Resize": {"target_size": size, "interp": 2}} for size in sizes]
    return {"EvalReader": {"sample_transforms": steps}}


def sizes_of(cfg: dict[str, Any]) -> list[Any]:
    steps = cfg["EvalReader"]["sample_transforms"]
    return [step["Resize"]["target_size"] for step in steps if "Resize" in step]


def test_reader_that_does_not_resize(caplog: pytest.LogCaptureFixture) -> None:
    """Resizes after decoding, as the reader of single images does; then no more."""
    cfg = reader()
    cfg["EvalReader"]["sample_transforms"].append({"Permute": {}})
    cfg["TestReader"] = {"sample_transforms": [{"Resize": {"target_size": [9, 9], "interp": 2}}]}
    before = copy.deepcopy(cfg)
    with caplog.at_level("INFO", "slim_det"), eval_at(cfg, (64, 96)):
        assert cfg["EvalReader"]["sample_transforms"] == [
            {"Decode": {}},
            {"Resize": {"target_size": [64, 96], "interp": 2}},
            {"Permute": {}},
        ]
    assert cfg == before
    assert "EvalReader does not resize; the model was exported for 64x96" in caplog.text
    cfg["TestReader"] = {}
    with eval_at(cfg, (64, 96)):
        assert sizes_of(cfg) == [[64, 96]]


def test_reader_without_steps() -> None:
    cfg: dict[str, Any] = {"EvalReader": {}}
    with eval_at(cfg, (64, 96)):
        pass
    assert cfg == {"EvalReader": {}}


@pytest.mark.parametrize("size, told", [([64, 96], False), ([256, 256], True), (320, True)])
def test_size_of_the_artefact(size: Any, told: bool, caplog: pytest.LogCaptureFixture) -> None:
    """A line says so where the configuration has another one."""
    cfg = reader(size)
    with caplog.at_level("INFO", "slim_det"), eval_at(cfg, (64, 96)):
        assert sizes_of(cfg) == [[64, 96]]
    assert cfg == reader(size)
    assert ("exported for 64x96" in caplog.text) == told


def test_one_number_for_both_sides(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "slim_det"), eval_at(reader(64), (64, 64)):
        pass
    assert caplog.text == ""


def test_images_that_keep_their_ratio_are_read_alone() -> None:
    cfg = reader([32, 64])
    cfg["EvalReader"]["sample_transforms"][1]["Resize"]["keep_ratio"] = True
    cfg["EvalReader"]["batch_size"] = 8
    before = copy.deepcopy(cfg)
    with eval_at(cfg, (32, 64)):
        assert cfg["EvalReader"]["batch_size"] == 1
    assert cfg == before
    cfg["EvalReader"]["sample_transforms"][1]["Resize"]["keep_ratio"] = False
    with eval_at(cfg, (32, 64)):
        assert cfg["EvalReader"]["batch_size"] == 8


def test_commands_that_need_one_size() -> None:
    cfg = reader([32, 64])
    require_one_size(cfg, "this")
    cfg["EvalReader"]["sample_transforms"][1]["Resize"]["keep_ratio"] = True
    with pytest.raises(ConfigError, match="^this needs images of one size, .* keep_ratio: false"):
        require_one_size(cfg, "this")
    cfg["EvalReader"]["sample_transforms"].append({"Pad": {"size": [64, 64]}})
    require_one_size(cfg, "this")
    require_one_size({"EvalReader": {}}, "this")


def test_size_is_given_back_after_an_error() -> None:
    cfg = reader([32, 32], 64)
    with pytest.raises(ValueError), eval_at(cfg, (96, 96)):
        raise ValueError
    assert cfg == reader([32, 32], 64)
