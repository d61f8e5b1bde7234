"""AP in two steps, for evaluating many models on the same images: match each image, then score.

`slim_det.evaluate.evaluation` gives the same AP; there the truth is read anew and every pair of
boxes is looked at in Python. Here the truth is prepared once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from slim_det.core.errors import ConfigError
from slim_det.evaluate.coco_matching import CocoScorer
from slim_det.evaluate.evaluation import quiet_stdout
from slim_det.evaluate.image_matches import ImageMatches, boxes_by_image
from slim_det.evaluate.voc_matching import VocScorer
from slim_det.evaluate.widerface.matching import FaceScorer

__all__ = ["ApScorer", "ImageMatches", "boxes_by_image", "make_scorer"]


class ApScorer(Protocol):
    """Matches boxes with the objects of known images, and scores the matches."""

    name: str
    """``coco_ap``, ``voc_map_11point``, ``voc_map_integral`` or ``widerface_ap``."""

    @property
    def num_images(self) -> int:
        """Images added so far."""

    def add_batch(self, batch: dict[str, Any]) -> None:
        """Take the objects of the next images from a batch of ``EvalReader``."""

    def match(self, index: int, boxes: np.ndarray) -> ImageMatches:
        """Judge the boxes of one image: float32 [n, 6], class, score, xyxy in pixels."""

    def ap(self, matches: Sequence[ImageMatches], images: Sequence[int] | None = None) -> float:
        """AP of the matches of these images, 0 to 1; an image may come more than once."""


def make_scorer(cfg: Any, dataset: Any, num_images: int | None = None) -> ApScorer:
    """The scorer for the metric that the configuration names; its AP is that of `evaluate`.

    It knows no image yet: give it every batch of the loader, in order, before anything else::

        dataset, loader = eval_reader(cfg)
        scorer = make_scorer(cfg, dataset)
        for batch in loader:
            scorer.add_batch(batch)
        matches = [scorer.match(i, boxes) for i, boxes in enumerate(boxes_of_a_model)]
        scorer.ap(matches)

    Args:
        cfg: ppdet's configuration; ``metric`` is COCO, VOC or WiderFace.
        dataset: Its parsed ``EvalDataset``.
        num_images: Take only the first so many; objects of others then do not count.

    Raises:
        ConfigError: The metric or ``map_type`` is unknown.
        DataError: An annotation has no box or area, or the ground truth of WIDER FACE is missing
            or of other images.
    """
    if cfg.metric == "VOC":
        return VocScorer(cfg.num_classes, cfg.get("map_type", "11point"), num_images)
    if cfg.metric == "WiderFace":
        return FaceScorer(dataset, cfg.get("widerface_ground_truth"), num_images)
    if cfg.metric != "COCO":
        raise ConfigError(
            f"metric: '{cfg.metric}' cannot be evaluated; expected COCO, VOC or WiderFace"
        )
    from pycocotools.coco import COCO

    with quiet_stdout():
        truth = COCO(dataset.get_anno())
    return CocoScorer(truth, dataset.catid2clsid, num_images)
