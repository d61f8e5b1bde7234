"""The same figures from the libraries that define them: pycocotools and ppdet."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ppdet.metrics import VOCMetric
from ppdet.metrics.map_utils import DetectionMAP
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from slim_det.evaluate.detections import Detections
from slim_det.evaluate.scorer import ApScores
from tests.detections import rows_of


def indexed(content: dict[str, Any]) -> COCO:
    """pycocotools' object of the content of an annotation file."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = content
        truth.createIndex()
    return truth


def coco_scores(
    truth: COCO, catid2clsid: dict[int, int], found: Mapping[int, Detections]
) -> ApScores:
    """COCO box AP by pycocotools of the boxes of each image id."""
    category = {clsid: catid for catid, clsid in catid2clsid.items()}
    results = [
        {
            **{"image_id": image, "category_id": category[int(row[0])], "score": row[1]},
            "bbox": [row[2], row[3], row[4] - row[2], row[5] - row[3]],
        }
        for image, boxes in found.items()
        for row in rows_of(boxes).tolist()
        if row[0] >= 0
    ]
    names = {c["id"]: c["name"] for c in truth.dataset["categories"]}
    with_objects = {a["category_id"] for a in truth.dataset["annotations"]}
    per_class = {names[c]: 0.0 for c in category.values() if c in with_objects}
    if not results:
        return ApScores(0.0, 0.0, per_class)
    truth = indexed(copy.deepcopy(truth.dataset))
    with contextlib.redirect_stdout(io.StringIO()):
        scoring = COCOeval(truth, truth.loadRes(results), "bbox")
        scoring.evaluate()
        scoring.accumulate()
        scoring.summarize()
    ap, ap50 = (max(0.0, float(value)) for value in scoring.stats[:2])
    # precision: [IoU, recall, class, area, max detections]; -1 where there is no object.
    precision = scoring.eval["precision"][:, :, :, 0, -1]
    for k, catid in enumerate(scoring.params.catIds):
        valid = precision[:, :, k][precision[:, :, k] > -1]
        if valid.size:
            per_class[names[catid]] = float(valid.mean())
    return ApScores(ap, ap50, per_class)


def voc_scores(
    labels: Path,
    num_classes: int,
    map_type: str,
    batches: Sequence[dict[str, Any]],
    found: Sequence[Sequence[Detections]],
) -> ApScores:
    """VOC mAP by ppdet's metric.

    Args:
        labels: File of class names.
        num_classes: Classes of the detector.
        map_type: ``11point`` or ``integral``.
        batches: Of ppdet's reader.
        found: For every batch the boxes of its images.
    """
    metric = VOCMetric(str(labels), num_classes, map_type=map_type)
    for batch, images in zip(batches, found):
        rows = np.concatenate([rows_of(boxes).astype(np.float32) for boxes in images])
        metric.update(batch, {"bbox": rows, "bbox_num": np.array([len(b) for b in images])})
    metric.accumulate()
    matches, per_class = metric.detection_map, {}
    for clsid, name in metric.catid2name.items():
        if matches.class_gt_counts[clsid]:
            alone = DetectionMAP(1, map_type=map_type, catid2name={0: "one"})
            alone.class_score_poss = [matches.class_score_poss[clsid]]
            alone.class_gt_counts = [matches.class_gt_counts[clsid]]
            alone.accumulate()
            per_class[name] = float(alone.mAP)
    return ApScores(float(matches.mAP), float(matches.mAP), per_class)
