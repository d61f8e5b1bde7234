"""Creates the scorer of the configured metric."""

from __future__ import annotations

from typing import Any

from slim_det.core.errors import ConfigError
from slim_det.core.silence import quiet_stdout
from slim_det.evaluate import voc_matching
from slim_det.evaluate.coco_matching import CocoScorer
from slim_det.evaluate.scorer import ApScorer
from slim_det.evaluate.voc_matching import VocScorer
from slim_det.evaluate.widerface.matching import FaceScorer
from slim_det.evaluate.widerface.truth import faces_of


def metric_name(cfg: Any) -> str:
    """Metric name: ``coco_ap``, ``voc_map_11point``, ``voc_map_integral`` or ``widerface_ap``.

    Raises:
        ConfigError: ``metric`` or ``map_type`` of the configuration is unknown.
    """
    if cfg.metric == "VOC":
        return voc_matching.metric_name(cfg.get("map_type", "11point"))
    names = {"COCO": CocoScorer.name, "WiderFace": FaceScorer.name}
    if cfg.metric not in names:
        raise ConfigError(
            f"metric: '{cfg.metric}' cannot be evaluated; expected COCO, VOC or WiderFace"
        )
    return names[cfg.metric]


def make_scorer(cfg: Any, dataset: Any, num_images: int | None = None) -> ApScorer:
    """Create the scorer of the configured metric; batches of the loader are then added in order.

    Args:
        cfg: ppdet's configuration; ``metric`` is COCO, VOC or WiderFace.
        dataset: The parsed ``EvalDataset``.
        num_images: Use only the first ``num_images`` images; objects of the others do not count.

    Raises:
        ConfigError: The metric or ``map_type`` is unknown.
        DataError: An annotation has no box or area, or the WIDER FACE ground truth is missing or
            does not belong to these images.
    """
    metric_name(cfg)
    if cfg.metric == "VOC":
        names = {clsid: name for name, clsid in dataset.cname2cid.items()}
        return VocScorer(cfg.num_classes, cfg.get("map_type", "11point"), num_images, names)
    if cfg.metric == "WiderFace":
        names_and_truth = faces_of(dataset, cfg.get("widerface_ground_truth"))
        return FaceScorer(*names_and_truth, num_images)
    from pycocotools.coco import COCO

    with quiet_stdout():
        truth = COCO(dataset.get_anno())
    return CocoScorer(truth, dataset.catid2clsid, num_images)
