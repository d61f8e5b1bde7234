"""Scorers on a complete data set, read by ppdet, equal the libraries that define the metrics."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slim_det.core.errors import ConfigError
from slim_det.evaluate.detections import Detections
from slim_det.evaluate.evaluation import eval_reader, evaluate
from slim_det.evaluate.matching import make_scorer, metric_name
from slim_det.training.config import load_config
from tests.evaluate.oracles import coco_scores, indexed, voc_scores


def some_boxes(
    random: np.random.Generator, annotations: list[dict[str, Any]], images: list[int]
) -> list[Detections]:
    """About right for every object, with a stranger beside each; an image without boxes too."""
    found = []
    for image in images:
        objects = [a for a in annotations if a["image_id"] == image]
        sides = np.array([a["bbox"] for a in objects], float).reshape(-1, 4)
        near = sides + random.integers(-2, 3, sides.shape)
        near[:, 2:] += near[:, :2]
        boxes = np.concatenate([near, random.random(near.shape).cumsum(axis=1) * 20])
        classes = np.array([a["category_id"] - 1 for a in objects] * 2, int)
        both = Detections(boxes, random.integers(1, 8, len(boxes)) / 8, classes)
        found.append(both if random.random() < 0.8 else Detections.empty())
    return found


@pytest.mark.parametrize("metric", ["coco_ap", "voc_map_11point", "voc_map_integral"])
def test_equals_the_evaluation(
    fresh_config: Any, tiny: Path, tiny_voc: Path, shapes: Path, metric: str
) -> None:
    """Images of another shape than the detector's input, so that their objects are scaled."""
    cfg = load_config(tiny if metric == "coco_ap" else tiny_voc)
    if metric.startswith("voc"):
        cfg["map_type"] = metric.rsplit("_", 1)[1]
    cfg["EvalReader"]["sample_transforms"][1]["Resize"]["target_size"] = [70, 130]
    dataset, loader = eval_reader(cfg)
    scorer = make_scorer(cfg, dataset)
    annotations = json.loads((shapes / "annotations" / "instances_val.json").read_text())
    random, batches, found = np.random.default_rng(1), [], []
    for batch in loader:
        images = np.asarray(batch["im_id"]).ravel().tolist()
        batches.append(batch)
        found.append(some_boxes(random, annotations["annotations"], images))
        scorer.add_batch(batch)
    if metric == "coco_ap":
        ids = [i for batch in batches for i in np.asarray(batch["im_id"]).ravel().tolist()]
        truth = indexed(json.loads(Path(dataset.get_anno()).read_text()))
        by_id = dict(zip(ids, itertools.chain(*found)))
        expected = coco_scores(truth, dataset.catid2clsid, by_id)
    else:
        labels = Path(dataset.get_label_list())
        expected = voc_scores(labels, cfg.num_classes, cfg["map_type"], batches, found)
    assert scorer.name == metric == metric_name(cfg) and scorer.num_images == 6
    scores = scorer.scores([scorer.match(i, f) for i, f in enumerate(itertools.chain(*found))])
    assert scores.ap == pytest.approx(expected.ap, abs=1e-12)
    assert scores.ap50 == pytest.approx(expected.ap50, abs=1e-12)
    assert scores.per_class == pytest.approx(expected.per_class, abs=1e-12)
    assert 0.01 < scores.ap < 0.99
    replay = itertools.chain(found, [found[0][:1]] * 3)  # and the runs that measure the latency
    result = evaluate(cfg, lambda batch: next(replay), "dygraph", latency_runs=1)
    assert result.metric == metric and result.num_images == 6
    assert (result.ap, result.ap50, result.per_class) == (
        scores.ap,
        scores.ap50,
        scores.per_class,
    )


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
    fresh_config.update(metric="VOC", map_type="12point")
    with pytest.raises(ConfigError, match="'12point' is unknown; did you mean '11point'"):
        metric_name(fresh_config)
