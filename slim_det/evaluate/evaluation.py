"""Evaluation of a detector on the configuration's data, whatever engine runs it."""

from __future__ import annotations

import contextlib
import io
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import paddle
from ppdet.core.workspace import create
from ppdet.data.source.category import get_categories
from ppdet.metrics import VOCMetric, get_infer_results
from ppdet.metrics.map_utils import DetectionMAP
from tqdm import tqdm

from slim_det.core.errors import ConfigError, DataError
from slim_det.evaluate.widerface.metric import FaceAp

logger = logging.getLogger("slim_det")

POINTS = 100.0
"""Points of AP in the whole."""

Predict = Callable[[dict[str, Any]], "dict[str, np.ndarray]"]
"""Takes one batch of a ppdet reader; gives ``bbox`` float [N, 6] (class, score, xyxy in pixels
of the original image) and ``bbox_num`` int [batch]."""


@dataclass(frozen=True)
class EvalResult:
    """What an evaluation found; fractions are 0 to 1.

    Attributes:
        metric: ``coco_ap`` (IoU 0.50:0.95), ``voc_map_11point``, ``voc_map_integral`` or
            ``widerface_ap``.
        ap: Its value; of WIDER FACE the mean of easy, medium and hard.
        ap50: AP at IoU 0.5.
        per_class: Class name -> value; classes without objects are left out. Of WIDER FACE
            easy, medium and hard.
        num_images: Images evaluated.
        engine: ``dygraph``, ``dygraph_multi_scale`` or ``paddle_inference``.
        latency_ms: Median of single-image runs, decoding and NMS included, reading not.
        artifact: Folder of the exported model; None for dygraph.
        bands: Of WIDER FACE: ``official`` settings, or the heights that stand in for them.
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
        """The result under its JSON keys."""
        return asdict(self)

    def points_below(self, other: EvalResult) -> float:
        """Points of AP lost against another; of WIDER FACE in the setting that loses most."""
        lost = [other.ap - self.ap]
        if self.bands:
            lost += [other.per_class[name] - value for name, value in self.per_class.items()]
        return POINTS * max(lost)

    def __str__(self) -> str:
        """One line for people."""
        classes = ", ".join(f"{name} {value:.4f}" for name, value in self.per_class.items())
        bands = f"; {self.bands}" if self.bands else ""
        return (
            f"{self.metric} {self.ap:.4f} on {self.num_images} images "
            f"({classes or 'no objects'}{bands}); {self.latency_ms:.1f} ms an image, {self.engine}"
        )


def evaluate(
    cfg: Any,
    predict: Predict,
    engine: str,
    artifact: str | None = None,
    latency_runs: int = 10,
    metric: BoxMetric | None = None,
) -> EvalResult:
    """Run every image of ``EvalDataset`` through a predictor and score the boxes.

    Args:
        cfg: ppdet's configuration; ``metric`` is COCO, VOC or WiderFace.
        predict: The detector.
        engine: Its name, for the result.
        artifact: Folder of the exported model, for the result.
        latency_runs: Single-image runs whose median is the latency.
        metric: Takes the boxes; default what `make_metric` makes.

    Raises:
        ConfigError: The metric is none of these.
        DataError: WIDER FACE's ground truth is missing, or is of other images.
    """
    metric = metric or make_metric(cfg)
    dataset, loader = eval_reader(cfg)
    metric.start(dataset)
    first: dict[str, Any] | None = None
    for batch in tqdm(loader, desc="eval", unit="batch", disable=None, leave=False):
        first = first or batch
        metric.update(batch, predict(batch))
    metric.accumulate(dataset)
    latency = median_latency_ms(predict, single_image(first), latency_runs) if first else 0.0
    return EvalResult(
        metric=metric.name,
        ap=metric.ap,
        ap50=metric.ap50,
        per_class=metric.per_class,
        num_images=len(dataset),
        engine=engine,
        latency_ms=latency,
        artifact=artifact,
        bands=getattr(metric, "bands", None),
    )


def dygraph_predictor(model: paddle.nn.Layer) -> Predict:
    """Wrap a ppdet model in evaluation mode."""
    model.eval()

    def predict(batch: dict[str, Any]) -> dict[str, np.ndarray]:
        with paddle.no_grad():
            outputs = model(batch)
        return {name: np.asarray(value) for name, value in outputs.items() if value is not None}

    return predict


def eval_reader(cfg: Any) -> tuple[Any, Any]:
    """The evaluation data set and a loader over it, in a fixed order."""
    dataset = create("EvalDataset")()
    if cfg.metric == "VOC":
        cfg["EvalReader"]["collate_batch"] = False
    sampler = paddle.io.BatchSampler(dataset, batch_size=cfg["EvalReader"]["batch_size"])
    with quiet_stdout():
        loader = create("EvalReader")(dataset, cfg.worker_num, sampler)
    return dataset, loader


def class_names(cfg: Any) -> dict[int, str]:
    """Name of each class index that a detector gives, from ``TestDataset``.

    Raises:
        DataError: There are not ``num_classes`` names. Where ``anno_path`` is missing, ppdet
            gives those of COCO or VOC.
    """
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
    """Median wall-clock time of ``runs`` predictions after two that are not counted."""
    times = []
    for _ in range(runs + 2):
        start = time.perf_counter()
        predict(batch)
        times.append(time.perf_counter() - start)
    return float(np.median(times[2:]) * 1e3)


class BoxMetric(Protocol):
    """What an evaluation asks of a metric."""

    name: str
    ap: float
    ap50: float
    per_class: dict[str, float]

    def start(self, dataset: Any) -> None:
        """Before the first batch."""

    def update(self, batch: dict[str, Any], outputs: dict[str, np.ndarray]) -> None:
        """Take the boxes of one batch."""

    def accumulate(self, dataset: Any) -> None:
        """Score everything taken."""


def make_metric(cfg: Any, save_pred: str | None = None) -> BoxMetric:
    """The metric that the configuration names.

    Args:
        cfg: ppdet's configuration.
        save_pred: Of WIDER FACE: folder for the boxes that were found.

    Raises:
        ConfigError: It is none of COCO, VOC and WiderFace.
    """
    if cfg.metric == "COCO":
        return CocoAp()
    if cfg.metric == "VOC":
        return VocMap(cfg)
    if cfg.metric == "WiderFace":
        return FaceAp(cfg.get("widerface_ground_truth"), save_pred)
    raise ConfigError(
        f"metric: '{cfg.metric}' cannot be evaluated; expected COCO, VOC or WiderFace"
    )


class CocoAp:
    """COCO box AP by pycocotools; no boxes at all is AP 0."""

    name = "coco_ap"

    def __init__(self) -> None:
        self.ap = self.ap50 = 0.0
        self.per_class: dict[str, float] = {}
        self._raw: list[dict[str, np.ndarray]] = []

    def start(self, dataset: Any) -> None:
        """Nothing is needed before the end."""

    def update(self, batch: dict[str, Any], outputs: dict[str, np.ndarray]) -> None:
        """Keep the boxes of one batch."""
        self._raw.append(dict(outputs, im_id=np.asarray(batch["im_id"])))

    def accumulate(self, dataset: Any) -> None:
        """Score everything kept against the data set's annotations."""
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        clsid2catid = {clsid: catid for catid, clsid in dataset.catid2clsid.items()}
        boxes = []
        for outputs in self._raw:
            boxes += get_infer_results(outputs, clsid2catid).get("bbox", [])
        with quiet_stdout():
            truth = COCO(dataset.get_anno())
        names = {c["id"]: c["name"] for c in truth.dataset["categories"]}
        with_objects = {a["category_id"] for a in truth.dataset["annotations"]}
        self.per_class = {names[c]: 0.0 for c in clsid2catid.values() if c in with_objects}
        if not boxes:
            logger.warning("no boxes were found at all: AP is 0")
            return
        with quiet_stdout():
            scoring = COCOeval(truth, truth.loadRes(boxes), "bbox")
            scoring.evaluate()
            scoring.accumulate()
            scoring.summarize()
        self.ap, self.ap50 = (max(0.0, float(value)) for value in scoring.stats[:2])
        # precision: [IoU, recall, class, area, max detections]; -1 where there is no object.
        precision = scoring.eval["precision"][:, :, :, 0, -1]
        for k, category in enumerate(scoring.params.catIds):
            valid = precision[:, :, k][precision[:, :, k] > -1]
            if valid.size:
                self.per_class[names[category]] = float(valid.mean())


class VocMap:
    """ppdet's VOC mAP at IoU 0.5, 11-point or integral, with the value of every class."""

    def __init__(self, cfg: Any) -> None:
        self.ap = self.ap50 = 0.0
        self.per_class: dict[str, float] = {}
        self._classes = cfg.num_classes
        self._map_type = cfg.get("map_type", "11point")
        self._metric: VOCMetric | None = None
        self._pending: list[tuple[dict[str, Any], dict[str, np.ndarray]]] = []
        self.name = f"voc_map_{self._map_type}"

    def start(self, dataset: Any) -> None:
        """Nothing is needed before the end."""

    def update(self, batch: dict[str, Any], outputs: dict[str, np.ndarray]) -> None:
        """Keep the boxes and the truth of one batch; the images are let go."""
        truth = {k: batch[k] for k in ("gt_bbox", "gt_class", "difficult", "scale_factor")}
        boxes = {k: outputs[k] for k in ("bbox", "bbox_num")}
        if boxes["bbox"].shape[-1] != 6:
            # Paddle's NMS gives one row of a single -1 where a whole batch has no box.
            boxes = {"bbox": np.zeros((0, 6), "float32"), "bbox_num": 0 * boxes["bbox_num"]}
        self._pending.append((truth, boxes))

    def accumulate(self, dataset: Any) -> None:
        """Score everything kept."""
        metric = VOCMetric(dataset.get_label_list(), self._classes, map_type=self._map_type)
        for truth, boxes in self._pending:
            metric.update(truth, boxes)
        matches = metric.detection_map
        matches.accumulate()
        self.ap = self.ap50 = float(matches.mAP)
        for clsid, name in metric.catid2name.items():
            if matches.class_gt_counts[clsid]:
                self.per_class[name] = self._class_ap(matches, clsid)

    def _class_ap(self, matches: DetectionMAP, clsid: int) -> float:
        """The same computation for one class alone."""
        alone = DetectionMAP(1, map_type=self._map_type, catid2name={0: "one"})
        alone.class_score_poss = [matches.class_score_poss[clsid]]
        alone.class_gt_counts = [matches.class_gt_counts[clsid]]
        alone.accumulate()
        return float(alone.mAP)


@contextlib.contextmanager
def quiet_stdout() -> Iterator[None]:
    """Swallow what libraries print; errors still raise."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
