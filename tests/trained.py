"""Detectors with a good AP that no one had to train.

The weights are drawn from a seed, and the objects of the data set are the best boxes that the
detector finds with them. So its AP is near 1, every cut changes it, and all is done in a second.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import yaml

from slim_det.demo import CLASS_NAMES
from slim_det.evaluate.detections import Detections
from slim_det.evaluate.evaluation import dygraph_predictor, eval_reader
from slim_det.training import session
from slim_det.training.config import load_config
from tests.support import restored_config

OBJECTS = 5
"""Mean number of objects in an image: the boxes of the highest scores."""

LEAST_SIDE = 1.0
"""Pixels; readers drop smaller objects."""

_OUTPUT_GAIN = 3.0

Prepare = Callable[[paddle.nn.Layer, "list[Any]"], None]
"""Changes the weights of a model; is given the batches of the evaluation reader as well."""


@dataclass(frozen=True)
class Detector:
    """A detector and its data in a folder of their own.

    Attributes:
        folder: Holds everything.
        config: Names weights and data; the metric is COCO's.
        voc: The same detector and objects, measured in the VOC way.
        weights: The file of weights.
    """

    folder: Path
    config: Path
    voc: Path
    weights: Path

    @property
    def images(self) -> Path:
        """Folder of the images."""
        return self.folder / "set" / "images"

    @property
    def annotations(self) -> Path:
        """The objects in COCO's format."""
        return self.folder / "set" / "objects.json"


def make_detector(
    folder: Path,
    base: Path,
    data: Path,
    prepare: Prepare | None = None,
    **changes: Any,
) -> Detector:
    """Draw weights for a configuration, and take what it finds for the truth.

    Args:
        folder: A new folder.
        base: Configuration of the detector.
        data: Folder of the images, in the layout of `slim_det.demo.draw_shapes`.
        prepare: Sets the weights of the model that it is given; by default `enliven`.
        changes: Component name -> settings that replace those of the configuration.
    """
    detector = Detector(
        folder, folder / "detector.yml", folder / "voc.yml", folder / "weights.pdparams"
    )
    root = folder / "set"
    shutil.copytree(data, root)
    given = {"dataset_dir": str(root), "image_dir": "images"}
    coco = {**given, "anno_path": "annotations/instances_val.json"}
    content = {
        "_BASE_": [str(base)],
        "weights": str(detector.weights),
        "EvalDataset": coco,
        "TestDataset": {"dataset_dir": str(root), "anno_path": "annotations/instances_val.json"},
        **changes,
    }
    _write_yaml(detector.config, content)
    boxes = _draw_weights(detector, prepare or enliven)
    _write_coco(root, boxes)
    _write_voc(root, boxes)
    content["EvalDataset"] = {**coco, "anno_path": "objects.json"}
    _write_yaml(detector.config, content)
    voc = {
        "name": "VOCDataSet",
        "dataset_dir": str(root),
        "image_dir": "",
        "anno_path": "objects.txt",
        "label_list": "label_list.txt",
        "data_fields": ["image", "gt_bbox", "gt_class", "difficult"],
    }
    base_voc = {"_BASE_": [str(detector.config)], "metric": "VOC", "map_type": "11point"}
    reader = {"EvalReader": {"collate_batch": False}}
    _write_yaml(detector.voc, {**base_voc, "EvalDataset": voc, **reader})
    return detector


def copy_detector(detector: Detector, folder: Path) -> Detector:
    """A copy that a test may change."""
    shutil.copytree(detector.folder, folder)
    files = (detector.config, detector.voc, detector.weights)
    copy = Detector(folder, *(folder / path.name for path in files))
    for path in (copy.config, copy.voc):
        path.write_text(path.read_text().replace(str(detector.folder), str(folder)))
    return copy


def _draw_weights(detector: Detector, prepare: Prepare) -> dict[str, list[tuple[int, np.ndarray]]]:
    """Save weights; gives the objects of every image: class, and xyxy in pixels."""
    with restored_config():
        cfg = load_config(detector.config)
        paddle.seed(0)
        model = session.build_model(cfg)
        dataset, loader = eval_reader(cfg)
        batches = list(loader)
        prepare(model, batches)
        paddle.save(model.state_dict(), str(detector.weights))
        predict = dygraph_predictor(model)
        found = [boxes for batch in batches for boxes in predict(batch)]
    names = [Path(record["im_file"]).name for record in dataset.roidbs]
    found = [boxes[_sides(boxes).min(1) >= LEAST_SIDE] for boxes in found]
    scores = np.sort(np.concatenate([boxes.scores for boxes in found]))
    least = scores[-OBJECTS * len(found)]
    return {name: _objects(boxes, least) for name, boxes in zip(names, found)}


def enliven(model: paddle.nn.Layer, batches: list[Any]) -> None:
    """Channels of different weight, statistics that fit the images, scores that differ."""
    rng = np.random.default_rng(0)
    norms = [x for x in model.sublayers() if isinstance(x, paddle.nn.layer.norm._BatchNormBase)]
    for norm in norms:
        norm.weight.set_value(rng.uniform(0.2, 1.8, norm.weight.shape).astype("float32"))
        norm.bias.set_value(rng.normal(0.0, 0.3, norm.bias.shape).astype("float32"))
        norm.training, norm._momentum = True, 0.5
    with paddle.no_grad():
        for batch in 3 * batches:
            model(batch)
        for norm in norms:
            norm.training = False
        for name, parameter in model.named_parameters():
            if "yolo_output" in name and parameter.ndim == 4:
                parameter.set_value(parameter * _OUTPUT_GAIN)


def _sides(boxes: Detections) -> np.ndarray:
    return boxes.boxes_xyxy[:, 2:] - boxes.boxes_xyxy[:, :2]


def _objects(boxes: Detections, least: float) -> list[tuple[int, np.ndarray]]:
    """Class and box of every score that is high enough; of the highest in any case."""
    best = boxes[boxes.scores >= min(least, boxes.scores.max())]
    return list(zip(best.class_ids.tolist(), best.boxes_xyxy))


def _write_coco(root: Path, boxes: dict[str, list[tuple[int, np.ndarray]]]) -> None:
    content = json.loads((root / "annotations" / "instances_val.json").read_text())
    content["annotations"] = []
    for image in content["images"]:
        for label, box in boxes[image["file_name"]]:
            left, top, right, bottom = map(float, box)
            entry = {
                "id": len(content["annotations"]) + 1,
                "image_id": image["id"],
                "category_id": label + 1,
                "bbox": [left, top, right - left, bottom - top],
                "area": (right - left) * (bottom - top),
                "iscrowd": 0,
            }
            content["annotations"].append(entry)
    (root / "objects.json").write_text(json.dumps(content))


def _write_voc(root: Path, boxes: dict[str, list[tuple[int, np.ndarray]]]) -> None:
    (root / "objects").mkdir()
    lines = []
    for name, objects in boxes.items():
        size = "<size><width>96</width><height>96</height><depth>3</depth></size>"
        text = [f"<annotation>{size}"]
        for label, box in objects:
            sides = zip(("xmin", "ymin", "xmax", "ymax"), map(float, box))
            inside = "".join(f"<{tag}>{value!r}</{tag}>" for tag, value in sides)
            text.append(
                f"<object><name>{CLASS_NAMES[label]}</name><difficult>0</difficult>"
                f"<bndbox>{inside}</bndbox></object>"
            )
        path = Path("objects") / f"{Path(name).stem}.xml"
        (root / path).write_text("".join([*text, "</annotation>"]))
        lines.append(f"images/{name} {path}\n")
    (root / "objects.txt").write_text("".join(lines))


def _write_yaml(path: Path, content: dict[str, Any]) -> None:
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def thin_detector(folder: Path, tiny: Path, data: Path, **options: Any) -> Detector:
    """`make_detector` with a plain backbone: 18 groups in the head, little to trace."""
    changes = {
        "YOLOv3": {"backbone": "PlainBackbone"},
        "PlainBackbone": {"widths": [8, 8, 16, 16, 24]},
        "ScaledYOLOv3FPN": {"width": 0.0625},
    }
    return make_detector(folder, tiny, data, **{**changes, **options})
