"""Scorers on a whole data set, read by ppdet, equal the evaluation that reads it the slow way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slim_det.core.errors import ConfigError
from slim_det.evaluate.evaluation import eval_reader, make_metric
from slim_det.evaluate.matching import boxes_by_image, make_scorer
from slim_det.training.config import load_config


def some_boxes(
    random: np.random.Generator, annotations: list[dict[str, Any]], images: list[int]
) -> dict[str, np.ndarray]:
    """About right for every object, with a stranger beside each; an image without boxes too."""
    parts = []
    for image in images:
        objects = [a for a in annotations if a["image_id"] == image]
        sides = np.array([a["bbox"] for a in objects], float).reshape(-1, 4)
        near = sides + random.integers(-2, 3, sides.shape)
        near[:, 2:] += near[:, :2]
        found = np.concatenate([near, random.random(near.shape).cumsum(axis=1) * 20])
        classes = np.array([a["category_id"] - 1 for a in objects] * 2, float)
        rows = np.column_stack([classes, random.integers(1, 8, len(found)) / 8, found])
        parts.append(rows if random.random() < 0.8 else rows[:0])
    counts = np.array([len(rows) for rows in parts], np.int32)
    return {"bbox": np.concatenate(parts).astype(np.float32), "bbox_num": counts}


@pytest.mark.parametrize("metric", ["coco_ap", "voc_map_11point", "voc_map_integral"])
def test_equals_the_evaluation(
    fresh_config: Any, tiny: Path, tiny_voc: Path, shapes: Path, metric: str
) -> None:
    """Images of another shape than the detector's input, so that their objects are scaled."""
    cfg = load_config(tiny if metric == "coco_ap" else tiny_voc)
    if metric.startswith("voc"):
        cfg["map_type"] = metric.rsplit("_", 1)[1]
    cfg["EvalReader"]["sample_transforms"][1]["Resize"]["target_size"] = [70, 130]
    slow = make_metric(cfg)
    dataset, loader = eval_reader(cfg)
    scorer = make_scorer(cfg, dataset)
    annotations = json.loads((shapes / "annotations" / "instances_val.json").read_text())
    random, found = np.random.default_rng(1), []
    for batch in loader:
        images = np.asarray(batch["im_id"]).ravel().tolist()
        outputs = some_boxes(random, annotations["annotations"], images)
        slow.update(batch, outputs)
        scorer.add_batch(batch)
        found += boxes_by_image(outputs)
    slow.accumulate(dataset)
    assert scorer.name == metric == slow.name and scorer.num_images == 6
    value = scorer.ap([scorer.match(i, boxes) for i, boxes in enumerate(found)])
    assert value == pytest.approx(slow.ap, abs=1e-12)
    assert 0.01 < value < 0.99


@pytest.mark.parametrize("metric", ["COCO", "VOC"])
def test_first_images_only(fresh_config: Any, tiny: Path, tiny_voc: Path, metric: str) -> None:
    cfg = load_config(tiny if metric == "COCO" else tiny_voc)
    dataset, loader = eval_reader(cfg)
    scorer = make_scorer(cfg, dataset, num_images=2)
    for batch in loader:
        scorer.add_batch(batch)
    assert scorer.num_images == 2


def test_metric_that_is_unknown(fresh_config: Any) -> None:
    fresh_config["metric"] = "KITTI"
    with pytest.raises(
        ConfigError, match="'KITTI' cannot be evaluated; expected COCO, VOC or Wider"
    ):
        make_scorer(fresh_config, None)
