"""AP by known truth: perfect boxes, none, and cases worked out by hand."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from slim_det.core.errors import ConfigError, DataError
from slim_det.demo import CLASS_NAMES
from slim_det.evaluate import evaluation
from slim_det.evaluate.detections import Detections, parse_detections
from slim_det.evaluate.evaluation import EvalResult, evaluate
from slim_det.evaluate.matching import make_scorer, metric_name
from slim_det.evaluate.preprocess import ArtifactReader
from slim_det.evaluate.scorer import ApScores
from slim_det.training.config import load_config

NOTHING = {"bbox": np.array([[-1.0]], np.float32), "bbox_num": np.array([0], np.int32)}


def found_in(boxes: Any) -> list[Detections]:
    """Detections of a batch of one image: (class, score, x1, y1, x2, y2); as an NMS gives them."""
    rows = np.array(boxes, np.float32).reshape(-1, 6)
    return parse_detections({"bbox": rows, "bbox_num": [len(rows)]} if boxes else NOTHING)


class CocoTruth:
    """A data set of two images; category ids are neither dense nor in order."""

    catid2clsid = {7: 0, 3: 1, 9: 2}

    def __init__(self, folder: Path) -> None:
        boxes = [(1, 7, [0, 0, 10, 10]), (1, 3, [30, 30, 20, 20]), (2, 7, [5, 5, 40, 40])]
        annotations = [
            {"id": i, "image_id": m, "category_id": c, "bbox": b, "area": b[2] * b[3], "iscrowd": 0}
            for i, (m, c, b) in enumerate(boxes, start=1)
        ]
        names = {7: "cat", 3: "dog", 9: "cow"}
        content = {
            "images": [{"id": i, "width": 100, "height": 100} for i in (1, 2)],
            "annotations": annotations,
            "categories": [{"id": k, "name": v} for k, v in names.items()],
        }
        self.path = folder / "truth.json"
        self.path.write_text(json.dumps(content))

    def get_anno(self) -> str:
        return str(self.path)


def coco(folder: Path, *detections: Any) -> ApScores:
    scorer = make_scorer(SimpleNamespace(metric="COCO"), CocoTruth(folder))
    matches = []
    for image, boxes in enumerate(detections, start=1):
        matches += scorer.take({"im_id": np.array([[image]])}, found_in(boxes))
    return scorer.scores(matches)


PERFECT = [
    [(0, 0.9, 0, 0, 10, 10), (1, 0.8, 30, 30, 50, 50)],
    [(0, 0.7, 5, 5, 45, 45)],
]


def test_coco_no_boxes(tmp_path: Path) -> None:
    """AP 0 for every class that has objects; the class without any is left out."""
    metric = coco(tmp_path, [], [])
    assert (metric.ap, metric.ap50) == (0.0, 0.0)
    assert metric.per_class == {"cat": 0.0, "dog": 0.0}
    assert metric.notes == ("no boxes were found at all: AP is 0",)


def test_coco_perfect_boxes(tmp_path: Path) -> None:
    metric = coco(tmp_path, *PERFECT)
    assert (metric.ap, metric.ap50) == (pytest.approx(1.0), pytest.approx(1.0))
    assert metric.per_class == {"cat": pytest.approx(1.0), "dog": pytest.approx(1.0)}


def test_coco_shifted_box(tmp_path: Path) -> None:
    """IoU 90/110: found at 7 of the 10 thresholds, and always at the first."""
    shifted = [(0, 0.9, 1, 0, 11, 10), (1, 0.8, 30, 30, 50, 50)]
    metric = coco(tmp_path, shifted, PERFECT[1])
    assert metric.ap50 == pytest.approx(1.0)
    assert metric.per_class["dog"] == pytest.approx(1.0)
    # Where the better scored one of two boxes is wrong, 51 of 101 recalls have precision 1/2.
    assert metric.per_class["cat"] == pytest.approx((7 * 1.0 + 3 * 51 / 101 / 2) / 10)
    assert metric.ap == pytest.approx((metric.per_class["cat"] + 1.0) / 2)


def test_coco_image_without_boxes_counts(tmp_path: Path) -> None:
    """Half of the cats are missed: 51 of 101 recalls are reached."""
    metric = coco(tmp_path, PERFECT[0], [])
    assert metric.per_class["cat"] == pytest.approx(51 / 101)


def truth(boxes: list[list[float]], classes: list[int], difficult: list[int] | None = None) -> dict:
    """What ppdet's VOC reader gives for one image that was halved in height and width."""
    return {
        "gt_bbox": [np.array(boxes, np.float32).reshape(-1, 4) * 0.5],
        "gt_class": [np.array(classes, np.int32).reshape(-1, 1)],
        "difficult": [np.array(difficult or [0] * len(classes), np.int32).reshape(-1, 1)],
        "scale_factor": np.array([[0.5, 0.5]], np.float32),
        "image": np.zeros((1, 3, 64, 64)),
    }


TWO_CATS_AND_A_DOG = ([[0, 0, 20, 20], [40, 40, 60, 60], [70, 0, 90, 20]], [0, 0, 1])
HIT_MISS_HIT = [(0, 0.9, 0, 0, 20, 20), (0, 0.8, 0, 70, 20, 90), (0, 0.7, 40, 40, 60, 60)]


def voc(map_type: str, *images: Any) -> ApScores:
    cfg = SimpleNamespace(metric="VOC", num_classes=3, get=lambda key, default: map_type)
    dataset = SimpleNamespace(cname2cid={"cat": 0, "dog": 1, "cow": 2})
    scorer = make_scorer(cfg, dataset)
    assert scorer.name == f"voc_map_{map_type}"
    matches = []
    for objects, boxes in images:
        matches += scorer.take(objects, found_in(boxes))
    return scorer.scores(matches)


@pytest.mark.parametrize(
    ("map_type", "cat"),
    [
        # Precision 1 up to recall 1/2, then 2/3: 6 and 5 of the 11 points.
        ("11point", (6 * 1 + 5 * 2 / 3) / 11),
        # A step of 1/2 at precision 1 and one at 2/3.
        ("integral", 0.5 * 1 + 0.5 * 2 / 3),
    ],
)
def test_voc_case_by_hand(map_type: str, cat: float) -> None:
    """The dog is missed; cows have no objects and do not count."""
    metric = voc(map_type, (truth(*TWO_CATS_AND_A_DOG), HIT_MISS_HIT))
    assert metric.per_class == {"cat": pytest.approx(cat), "dog": 0.0}
    assert metric.ap == metric.ap50 == pytest.approx(cat / 2)


@pytest.mark.parametrize("map_type", ["11point", "integral"])
def test_voc_perfect_boxes(map_type: str) -> None:
    boxes = [HIT_MISS_HIT[0], HIT_MISS_HIT[2], (1, 0.5, 70, 0, 90, 20)]
    metric = voc(map_type, (truth(*TWO_CATS_AND_A_DOG), boxes))
    assert metric.ap == pytest.approx(1.0)
    assert metric.per_class == {"cat": pytest.approx(1.0), "dog": pytest.approx(1.0)}


def test_voc_no_boxes() -> None:
    metric = voc("11point", (truth(*TWO_CATS_AND_A_DOG), []))
    assert metric.ap == 0.0 and metric.per_class == {"cat": 0.0, "dog": 0.0}


def test_voc_image_without_boxes_counts() -> None:
    """ppdet leaves the objects of such a batch out: half of the cats are missed here."""
    one = truth([[0, 0, 20, 20]], [0])
    metric = voc("integral", (one, HIT_MISS_HIT[:1]), (one, []))
    assert metric.per_class == {"cat": pytest.approx(0.5)}


def test_voc_difficult_objects_neither_help_nor_hurt() -> None:
    objects = truth(*TWO_CATS_AND_A_DOG, difficult=[0, 1, 0])
    boxes = [HIT_MISS_HIT[2], HIT_MISS_HIT[0], (1, 0.5, 70, 0, 90, 20)]
    assert voc("integral", (objects, boxes)).ap == pytest.approx(1.0)


def perfect(shapes: Path) -> Callable[[dict[str, Any]], list[Detections]]:
    """A predictor that knows the annotations."""
    content = json.loads((shapes / "annotations" / "instances_val.json").read_text())

    def predict(batch: dict[str, Any]) -> list[Detections]:
        found: list[Detections] = []
        for image in np.asarray(batch["im_id"]).ravel() if "im_id" in batch else [-1]:
            entries = [a for a in content["annotations"] if a["image_id"] == int(image)]
            sides = [(a["category_id"] - 1, a["bbox"]) for a in entries]
            found += found_in([(c, 0.9, x, y, x + w, y + h) for c, (x, y, w, h) in sides])
        return found

    return predict


@pytest.mark.parametrize("metric", ["coco_ap", "voc_map_11point"])
def test_complete_data_set(
    fresh_config: Any, tiny: Path, tiny_voc: Path, shapes: Path, metric: str
) -> None:
    """Perfect boxes in the pixels of the original images, which are read at another size."""
    cfg = load_config(tiny if metric == "coco_ap" else tiny_voc)
    cfg["EvalReader"]["sample_transforms"][1]["Resize"]["target_size"] = [64, 32]
    result = evaluate(cfg, perfect(shapes), "dygraph", latency_runs=1)
    assert result.metric == metric and result.num_images == 6
    assert result.ap == pytest.approx(1.0) and result.ap50 == pytest.approx(1.0)
    assert set(result.per_class) <= set(CLASS_NAMES) and min(result.per_class.values()) > 0.99
    assert set(result.as_dict()) >= {"metric", "ap", "per_class", "engine", "latency_ms"}
    assert "on 6 images" in str(result)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("metric", ["coco_ap", "voc_map_11point"])
def test_images_as_an_artifact_reads_them(
    fresh_config: Any, tiny: Path, tiny_voc: Path, shapes: Path, metric: str, workers: int
) -> None:
    """At its size and without normalisation, in the batches of ``EvalReader``, whose steps do not
    count; the objects are those of the same images."""
    cfg = load_config(tiny if metric == "coco_ap" else tiny_voc)
    cfg["worker_num"] = workers
    cfg["EvalReader"]["batch_transforms"] = [{"Permute": {}}]  # would fail on a batch
    resize = {"type": "Resize", "target_size": [64, 32], "keep_ratio": False, "interp": 2}
    reader = ArtifactReader({"Preprocess": [resize, {"type": "Permute"}]})
    find, seen = perfect(shapes), []

    def predict(batch: dict[str, Any]) -> list[Detections]:
        seen.append(np.asarray(batch["image"]))
        return find(batch)

    result = evaluate(cfg, predict, "paddle_inference", latency_runs=1, reader=reader)
    assert result.ap == pytest.approx(1.0) and result.num_images == 6
    dataset, _ = evaluation.eval_reader(cfg)
    expected = [reader(record["im_file"])["image"] for record in dataset.roidbs]
    assert [len(images) for images in seen[:2]] == [4, 2]
    assert np.array_equal(np.concatenate(seen[:2]), np.concatenate(expected))
    assert expected[0].shape == (1, 3, 64, 32) and expected[0].max() > 3.0


def test_metric_that_is_none_of_them(fresh_config: Any) -> None:
    fresh_config["metric"] = "KeyPointTopDownCOCOEval"
    with pytest.raises(ConfigError, match="cannot be evaluated; expected COCO, VOC or WiderFace"):
        metric_name(fresh_config)


def test_class_names(fresh_config: Any, tiny: Path, tiny_voc: Path) -> None:
    """By class index, the same from both kinds of annotations."""
    expected = dict(enumerate(CLASS_NAMES))
    assert evaluation.class_names(load_config(tiny)) == expected
    cfg = load_config(tiny_voc)
    assert evaluation.class_names(cfg) == expected
    cfg["num_classes"] = 5
    with pytest.raises(DataError, match="label_list.txt' gives 4 class names, num_classes is 5"):
        evaluation.class_names(cfg)


def test_latency_is_a_median_after_two_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slow first runs do not count, nor does a single slow one among three."""
    durations = iter([9.0, 8.0, 0.002, 7.0, 0.004])
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def predict(batch: dict[str, Any]) -> None:
        clock[0] += next(durations)

    assert evaluation.median_latency_ms(predict, {}, 3) == pytest.approx(4.0)
    assert next(durations, None) is None


def test_first_image_of_a_batch() -> None:
    batch = {k: np.arange(6).reshape(3, 2) for k in ("image", "im_shape", "scale_factor", "im_id")}
    single = evaluation.single_image(batch)
    assert set(single) == set(batch)
    assert all(value.tolist() == [[0, 1]] for value in single.values())


def test_result_without_objects() -> None:
    result = EvalResult("coco_ap", 0.0, 0.0, {}, 0, "dygraph", 0.0)
    assert "no objects" in str(result) and result.as_dict()["artifact"] is None
    assert result.as_dict()["bands"] is None


def test_settings_of_faces_are_named() -> None:
    settings = {"easy": 0.9, "medium": 0.5, "hard": 0.1}
    result = EvalResult("widerface_ap", 0.5, 0.5, settings, 3, "dygraph", 1.0, bands="official")
    assert str(result) == (
        "widerface_ap 0.5000 on 3 images (easy 0.9000, medium 0.5000, hard 0.1000; official); "
        "1.0 ms per image, dygraph"
    )
    assert result.as_dict()["bands"] == "official"


def result_of(ap: float, *parts: float, bands: str | None = None) -> EvalResult:
    named = dict(zip(("easy", "medium", "hard"), parts))
    return EvalResult("a", ap, ap, named, 3, "dygraph", 1.0, bands=bands)


def test_points_below_are_of_the_mean_over_classes() -> None:
    before, after = result_of(0.5, 0.7, 0.3), result_of(0.45, 0.3, 0.6)
    assert after.points_below(before) == pytest.approx(5.0)
    assert before.points_below(after) == pytest.approx(-5.0)
    assert after.points_below(after) == 0.0


def test_points_below_are_of_the_worst_setting_of_wider_face() -> None:
    before = result_of(0.5, 0.7, 0.5, 0.3, bands="official")
    after = result_of(0.5, 0.8, 0.5, 0.2, bands="official")
    assert after.points_below(before) == pytest.approx(10.0)
    assert before.points_below(after) == pytest.approx(10.0)
