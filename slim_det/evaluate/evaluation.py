"""Evaluation of a detector on the configured data set, in any engine."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import paddle
from tqdm import tqdm

from slim_det.core.errors import DataError
from slim_det.core.silence import quiet_stdout
from slim_det.evaluate.detections import Detections, Predict, parse_detections
from slim_det.evaluate.image_matches import ImageMatches
from slim_det.evaluate.matching import make_scorer
from slim_det.evaluate.widerface.files import PredictionFolder

if TYPE_CHECKING:  # it imports ppdet, whose import in turn leads here
    from slim_det.evaluate.preprocess import ArtifactReader

logger = logging.getLogger("slim_det")

POINTS = 100.0
"""Points in an AP of 1.0."""


@dataclass(frozen=True)
class EvalResult:
    """Result of an evaluation; fractions are 0 to 1.

    Attributes:
        metric: ``coco_ap`` (IoU 0.50:0.95), ``voc_map_11point``, ``voc_map_integral`` or
            ``widerface_ap``.
        ap: Value of the metric; for WIDER FACE the mean of easy, medium and hard.
        ap50: AP at IoU 0.5.
        per_class: Class name -> value, without classes that have no objects; for WIDER FACE
            easy, medium and hard.
        num_images: Number of images evaluated.
        engine: ``dygraph``, ``dygraph_multi_scale`` or ``paddle_inference``.
        latency_ms: Median of single-image runs, including decoding and NMS but not image loading.
        artifact: Folder of the exported model; None for dygraph.
        bands: For WIDER FACE: ``official``, or the height bands used in place of the official
            settings.
    """

    metric: str
    ap: float
    ap50: float
    per_class: dict[str, float]
    num_images: int
    engine: str
    latency_ms: float
    artifact: str | None = None
    bands: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The result as a dict with its JSON keys."""
        return asdict(self)

    def points_below(self, other: EvalResult) -> float:
        """AP points lost relative to another result; for WIDER FACE, in the worst setting."""
        lost = [other.ap - self.ap]
        if self.bands:
            lost += [other.per_class[name] - value for name, value in self.per_class.items()]
        return POINTS * max(lost)

    def __str__(self) -> str:
        """One human-readable line."""
        classes = ", ".join(f"{name} {value:.4f}" for name, value in self.per_class.items())
        bands = f"; {self.bands}" if self.bands else ""
        return (
            f"{self.metric} {self.ap:.4f} on {self.num_images} images "
            f"({classes or 'no objects'}{bands}); {self.latency_ms:.1f} ms per image, {self.engine}"
        )


def evaluate(
    cfg: Any,
    predict: Predict,
    engine: str,
    artifact: str | None = None,
    latency_runs: int = 10,
    save_pred: str | None = None,
    reader: ArtifactReader | None = None,
) -> EvalResult:
    """Run every image of ``EvalDataset`` through a predictor and score the detections.

    Args:
        cfg: ppdet's configuration; ``metric`` is COCO, VOC or WiderFace.
        predict: The detector.
        engine: Name of the engine, stored in the result.
        artifact: Folder of the exported model, stored in the result.
        latency_runs: Number of single-image runs whose median is the latency.
        save_pred: For WIDER FACE: folder that receives the detections, one text file per image,
            once all images have been scored.
        reader: For an exported model: prepares the images, in place of ``EvalReader``.

    Raises:
        ConfigError: The metric is not supported, or ``save_pred`` cannot be written to or holds
            unrelated files.
        DataError: The ground truth is missing or does not belong to these images, or a WIDER FACE
            detection is not finite.
    """
    dataset, loader = eval_reader(cfg, reader)
    scorer = make_scorer(cfg, dataset)
    saved = PredictionFolder(save_pred, dataset) if save_pred else None
    matches: list[ImageMatches] = []
    first: dict[str, Any] | None = None
    for batch in tqdm(loader, desc="eval", unit="batch", disable=None, leave=False):
        if first is None:
            first = batch
            _require_image_batch(batch)
        found = predict(batch)
        matches += scorer.take(batch, found)
        if saved:
            saved.update(batch, found)
    scores = scorer.scores(matches)
    for note in scores.notes:
        logger.warning("%s", note)
    if saved:
        saved.write()
    latency = median_latency_ms(predict, single_image(first), latency_runs) if first else 0.0
    return EvalResult(
        metric=scorer.name,
        ap=scores.ap,
        ap50=scores.ap50,
        per_class=scores.per_class,
        num_images=len(dataset),
        engine=engine,
        latency_ms=latency,
        artifact=artifact,
        bands=scorer.bands,
    )


def _require_image_batch(batch: dict[str, Any]) -> None:
    shape = list(np.shape(batch["image"]))
    if len(shape) != 4 or shape[1] != 3:
        raise DataError(
            f"EvalReader gives images of the shape {shape}; expected [n, 3, height, width], from "
            "one Permute"
        )


def evaluate_model(cfg: Any, model: paddle.nn.Layer) -> EvalResult:
    """Evaluate a ppdet model as it is, in dygraph; the latency is that of a single run.

    Arguments and errors are those of `evaluate`.
    """
    return evaluate(cfg, dygraph_predictor(model), "dygraph", latency_runs=1)


def dygraph_predictor(model: paddle.nn.Layer) -> Predict:
    """Wrap a ppdet model in evaluation mode."""
    model.eval()

    def predict(batch: dict[str, Any]) -> list[Detections]:
        with paddle.no_grad():
            return parse_detections(model(batch))

    return predict


def eval_reader(cfg: Any, prepare: ArtifactReader | None = None) -> tuple[Any, Any]:
    """The evaluation data set and a loader that reads it in a fixed order.

    Args:
        cfg: ppdet's configuration.
        prepare: Prepares the images in place of the steps of ``EvalReader``.
    """
    from ppdet.core.workspace import create

    dataset = create("EvalDataset")()
    if cfg.metric == "VOC":
        cfg["EvalReader"]["collate_batch"] = False
    alone = prepare is not None and prepare.sizes_vary
    batch_size = 1 if alone else cfg["EvalReader"]["batch_size"]
    sampler = paddle.io.BatchSampler(dataset, batch_size=batch_size)
    reader = create("EvalReader")
    if prepare is not None:
        reader._sample_transforms = prepare.prepare
        reader._batch_transforms.transforms_cls = []
    with quiet_stdout():
        loader = reader(dataset, cfg.worker_num, sampler)
    return dataset, loader


def class_names(cfg: Any) -> dict[int, str]:
    """Map each class index of the detector to its name, from ``TestDataset``.

    Raises:
        DataError: There are not ``num_classes`` names. If ``anno_path`` is missing, ppdet falls
            back to the names of COCO or VOC.
    """
    from ppdet.core.workspace import create
    from ppdet.data.source.category import get_categories

    dataset = create("TestDataset")()
    path = dataset.get_anno()
    with quiet_stdout():
        clsid2catid, names = get_categories(cfg.metric, path)
    if len(clsid2catid) != cfg.num_classes:
        known = "" if path and Path(path).is_file() else " does not exist, and"
        raise DataError(
            f"TestDataset: anno_path '{path}'{known} gives {len(clsid2catid)} class names, "
            f"num_classes is {cfg.num_classes}"
        )
    return {clsid: names[catid] for clsid, catid in clsid2catid.items()}


def single_image(batch: dict[str, Any]) -> dict[str, Any]:
    """The first image of a batch, as a batch of one."""
    return {key: batch[key][:1] for key in ("image", "im_shape", "scale_factor", "im_id")}


def median_latency_ms(predict: Predict, batch: dict[str, Any], runs: int) -> float:
    """Median wall-clock time of ``runs`` predictions, after two warm-up runs."""
    times = []
    for _ in range(runs + 2):
        start = time.perf_counter()
        predict(batch)
        times.append(time.perf_counter() - start)
    return float(np.median(times[2:]) * 1e3)
