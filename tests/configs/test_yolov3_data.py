"""The shipped configurations read the data that they name, where it is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ppdet.core.workspace import create

from slim_det.evaluate.data.check import check_dataset
from slim_det.training.config import load_config
from tests.commands import CONFIGS, ROOT

BLOOD_CELLS = sorted(CONFIGS.glob("yolov3_*_bccd*.yml"))
SHAPES = sorted(CONFIGS.glob("shapes*.yml"))


@pytest.mark.parametrize("path", BLOOD_CELLS, ids=lambda path: path.stem)
def test_blood_cells_are_read(
    fresh_config: Any, bccd: Path, bccd_weights: Path, monkeypatch: Any, path: Path
) -> None:
    """The paths of the file fit the shared data, from the project's root."""
    monkeypatch.chdir(ROOT)
    cfg = load_config(path)
    assert check_dataset(cfg, "TrainDataset") == 205
    assert check_dataset(cfg, "EvalDataset") == 87
    assert Path(cfg.weights).resolve() == bccd_weights.resolve()
    first_batch(cfg)


@pytest.mark.parametrize("path", SHAPES, ids=lambda path: path.stem)
def test_drawn_shapes_are_read(fresh_config: Any, shapes: Path, path: Path) -> None:
    folders = [f"{part}Dataset.dataset_dir={shapes}" for part in ("Train", "Eval", "Test")]
    cfg = load_config(path, folders)
    assert check_dataset(cfg, "TrainDataset") == 16
    first_batch(cfg)


def first_batch(cfg: Any) -> None:
    """Read one training batch; it holds images and a target for each of the three outputs."""
    dataset = create("TrainDataset")()
    batch = next(iter(create("TrainReader")(dataset, 0)))
    images = batch["image"].shape
    assert images[0] == cfg["TrainReader"]["batch_size"] and images[1] == 3
    for i, stride in enumerate((32, 16, 8)):
        assert batch[f"target{i}"].shape[-2:] == [images[2] // stride, images[3] // stride]
