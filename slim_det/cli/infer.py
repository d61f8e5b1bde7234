"""`slim-det infer`: draws detected boxes on images."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slim_det.cli import common
from slim_det.core.errors import ConfigError, ExportError

if TYPE_CHECKING:
    from PIL import Image

    from slim_det.evaluate.detections import Detections, Predict


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of PaddleDetection's inference script."""
    common.add_config_arguments(parser)
    common.add_image_arguments(parser)
    common.add_artifact_arguments(parser)
    parser.add_argument(
        "--beside", metavar="DIR", help="also draw the boxes of this exported model, on the right"
    )
    parser.add_argument(
        "--output_dir", default="output", metavar="DIR",
        help="folder for the images with boxes (default output)",
    )  # fmt: skip
    parser.add_argument(
        "--draw_threshold", type=float, default=0.5, metavar="S",
        help="smallest score to draw (default 0.5)",
    )  # fmt: skip
    common.add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Detect, draw and list the boxes."""
    from slim_det.core.files import require_writable
    from slim_det.deploy.predictor import Predictor
    from slim_det.evaluate.data.image_files import find_images
    from slim_det.evaluate.evaluation import class_names, dygraph_predictor
    from slim_det.evaluate.images import image_batches
    from slim_det.training import session

    cfg, slim = common.read_configs(args)
    if not 0.0 <= args.draw_threshold <= 1.0:
        raise ConfigError(f"--draw_threshold {args.draw_threshold} is not between 0 and 1")
    images = find_images(args.infer_img, args.infer_dir)
    _require_other_folder(args.output_dir, images)
    artifacts = [Predictor(path, args.threads) for path in (args.artifact, args.beside) if path]
    parts: list[tuple[Predict, Iterator[Any], dict[int, str]]] = [
        (one, one.reader.batches(images), dict(enumerate(one.settings["label_list"])))
        for one in artifacts
    ]
    if not args.artifact:
        model = session.model_with_weights(cfg, cfg.get("weights"), slim)
        parts.insert(0, (dygraph_predictor(model), image_batches(cfg, images), class_names(cfg)))
    detectors, readers, labels = zip(*parts)
    folder = require_writable(args.output_dir)
    figures: dict[str, Any] = {"images": []}
    for prepared in zip(*readers):
        path = prepared[0][0]
        found = [
            named_boxes(names, *predict(batch))
            for names, predict, (_, batch) in zip(labels, detectors, prepared)
        ]
        shown = [[box for box in boxes if box["score"] >= args.draw_threshold] for boxes in found]
        target = folder / Path(path).name
        pictures = [
            draw_boxes(path, boxes, list(names.values())) for names, boxes in zip(labels, shown)
        ]
        side_by_side(pictures).save(target, quality=95)
        counts = " and ".join(str(len(boxes)) for boxes in shown)
        print(f"{path}: {counts} boxes, drawn to {target}")
        figures["images"].append({"file": path, **dict(zip(("boxes", "beside"), found))})
    common.save_json(args, figures)
    return 0


def _require_other_folder(output_dir: str, images: Sequence[str]) -> None:
    """Refuse a folder in which the pictures would replace the images."""
    for path in images:
        target = os.path.join(output_dir, os.path.basename(path))
        if os.path.realpath(target) == os.path.realpath(path):
            raise ConfigError(
                f"--output_dir '{output_dir}' is the folder of '{path}', which would be "
                "overwritten; expected another one"
            )


def named_boxes(names: dict[int, str], found: Detections) -> list[dict[str, Any]]:
    """Detections of one image as dicts: ``label``, ``score``, ``bbox_xyxy`` in pixels.

    Raises:
        ExportError: A class has no name.
    """
    for class_id in found.class_ids.tolist():
        if class_id not in names:
            raise ExportError(
                f"an object of class {class_id} was found, and there are names for {len(names)} "
                "classes; expected the label_list of the model"
            )
    columns = (found.class_ids.tolist(), found.scores.tolist(), found.boxes_xyxy.tolist())
    return [
        {"label": names[class_id], "score": score, "bbox_xyxy": box}
        for class_id, score, box in zip(*columns)
    ]


def draw_boxes(path: str, boxes: list[dict[str, Any]], labels: Sequence[str] = ()) -> Image.Image:
    """Draw boxes from `named_boxes` and their labels on an image, one colour per class.

    With all class names as ``labels``, a class has the same colour on every image.
    """
    import cv2
    from PIL import Image, ImageDraw
    from ppdet.utils.colormap import colormap

    # As the detector sees it: turned by its EXIF, and with 8 bits.
    image = Image.fromarray(cv2.cvtColor(cv2.imread(path), cv2.COLOR_BGR2RGB))
    pen = ImageDraw.Draw(image)
    colors = colormap(rgb=True)
    labels = [*labels, *sorted({box["label"] for box in boxes} - set(labels))]
    for box in boxes:
        color = tuple(int(c) for c in colors[labels.index(box["label"]) % len(colors)])
        left, top, right, bottom = box["bbox_xyxy"]
        pen.rectangle((left, top, right, bottom), outline=color, width=2)
        text = f"{box['label']} {box['score']:.2f}"
        place = pen.textbbox((left + 2, max(0, top - 12)), text)
        pen.rectangle(place, fill=color)
        pen.text(place[:2], text, fill=(255, 255, 255))
    return image


def side_by_side(pictures: Sequence[Image.Image], gap: int = 4) -> Image.Image:
    """Join pictures of the same size from left to right, with a white gap of ``gap`` pixels."""
    from PIL import Image

    width, height = pictures[0].size
    row = Image.new("RGB", (len(pictures) * (width + gap) - gap, height), (255, 255, 255))
    for number, picture in enumerate(pictures):
        row.paste(picture, (number * (width + gap), 0))
    return row
