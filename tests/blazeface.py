"""Small detectors of faces, one of each kind, and drawn faces in WIDER FACE's layout for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import paddle
import yaml

from slim_det.evaluate.evaluation import dygraph_predictor, eval_reader
from slim_det.training import session
from slim_det.training.config import load_config
from tests.support import ROOT, restored_config

CONFIGS = ROOT / "configs" / "blazeface"
IMAGE_SIDE = 96
RESIZE = {"Resize": {"target_size": [IMAGE_SIDE, IMAGE_SIDE], "keep_ratio": False, "interp": 1}}

_THIN: dict[str, Any] = {
    "blaze_filters": [[8, 8], [8, 12, 2], [12, 12]],
    "double_blaze_filters": [[12, 8, 16, 2], [16, 8, 16], [16, 8, 24, 2], [24, 8, 24]],
}
_EVEN = [[12, 8, 16, 2], [16, 8, 16], [16, 8, 16, 2], [16, 8, 16]]
_SEARCHED: dict[str, Any] = {
    "blaze_filters": [[6, 6], [6, 6, 2], [6, 6]],
    "double_blaze_filters": [[6, 8, 12, 2], [12, 6, 12], [12, 8, 24, 2], [24, 6, 24]],
}
_NECK: dict[str, Any] = {"neck_type": "None", "in_channel": [16, 24]}

VARIANTS: dict[str, dict[str, Any]] = {
    "depthwise": {"BlazeFaceNet": _THIN, "BlazeNeck": _NECK},
    "dense": {"BlazeFaceNet": {**_THIN, "dense_second_conv": True}, "BlazeNeck": _NECK},
    "lite": {
        "BlazeFaceNet": {"lite_edition": True},
        "BlazeNeck": {"neck_type": "None", "in_channel": [88, 96]},
    },
    "nas": {
        "BlazeFaceNet": _SEARCHED,
        "BlazeNeck": {"neck_type": "None", "in_channel": [12, 24]},
    },
    "3x3": {"BlazeFaceNet": {**_THIN, "use_5x5kernel": False}, "BlazeNeck": _NECK},
    "fpn_ssh": {
        "BlazeFaceNet": {**_THIN, "double_blaze_filters": _EVEN, "act": "hard_swish"},
        "BlazeNeck": {"neck_type": "fpn_ssh", "in_channel": [16, 16]},
    },
}
"""Settings of `write_blazeface`: every kind of block and neck, thin where widths can be chosen."""

SHALLOW: dict[str, Any] = {
    "BlazeFaceNet": {
        "blaze_filters": [[8, 8], [8, 12, 2]],
        "double_blaze_filters": [[12, 8, 16, 2], [16, 8, 24, 2]],
    },
    "BlazeNeck": _NECK,
}
"""Changes of `write_blazeface`: one block of each stride, soon traced."""


def write_blazeface(path: Path, faces: Path, variant: str = "depthwise", **changes: Any) -> Path:
    """Write a configuration of a detector of faces at 96 pixels, one epoch of two steps.

    Args:
        path: The new file.
        faces: Folder of `draw_faces`.
        variant: A name of `VARIANTS`.
        changes: Top-level keys that replace those of the file.
    """
    base = yaml.safe_load((CONFIGS / "_base_" / "faces.yml").read_text(encoding="utf-8"))
    fixed = [{"Decode": {}}, RESIZE, base["EvalReader"]["sample_transforms"][2], {"Permute": {}}]
    box = [{"NormalizeBox": {}}, {"PadBox": {"num_max_boxes": 8}}]
    train = [{"Decode": {}}, {"RandomFlip": {}}, RESIZE, *box]
    dataset = {"dataset_dir": str(faces), "image_dir": "images"}
    content = {
        "_BASE_": [str(CONFIGS / "blazeface_faces.yml")],
        "weights": "",
        **VARIANTS[variant],
        "AnchorGeneratorSSD": {"min_sizes": [[12.0, 20.0], [28.0, 36.0, 48.0]]},
        "FaceHead": {"anchor_generator": "AnchorGeneratorSSD"},
        "TrainDataset": {**dataset, "anno_path": "train.txt"},
        "EvalDataset": {**dataset, "anno_path": "val.txt"},
        "TrainReader": {"sample_transforms": train, "batch_size": 4},
        "EvalReader": {"sample_transforms": fixed, "batch_size": 3},
        "TestReader": {
            "inputs_def": {"image_shape": [3, IMAGE_SIDE, IMAGE_SIDE]},
            "sample_transforms": fixed,
        },
        "save_dir": "saved",
        "worker_num": 0,
        "epoch": 1,
        "snapshot_epoch": 1,
        "log_iter": 1,
        **changes,
    }
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def draw_faces(folder: Path, num_train: int = 8, num_val: int = 6, seed: int = 0) -> Path:
    """Draw light ellipses with eyes on noise, and write their boxes as WIDER FACE does.

    Returns:
        The folder, with ``images/<event>/*.jpg``, ``train.txt`` and ``val.txt``.
    """
    rng = np.random.default_rng(seed)
    for part, count in (("train", num_train), ("val", num_val)):
        lines = []
        event = f"0--{part}"
        (folder / "images" / event).mkdir(parents=True)
        for number in range(count):
            name = f"{event}/face_{number}.jpg"
            boxes = _draw_image(folder / "images" / name, rng)
            rows = [f"{x} {y} {w} {h} 0 0 0 0 0 0" for x, y, w, h in boxes]
            lines += [name, str(len(rows)), *rows]
        (folder / f"{part}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def _draw_image(path: Path, rng: np.random.Generator) -> list[tuple[int, int, int, int]]:
    """One image of 120 x 140 pixels with one or two faces, left and right; their x y w h."""
    image = rng.integers(0, 110, (120, 140, 3), dtype=np.uint8)
    boxes = []
    for left in (2, 72)[: rng.integers(1, 3)]:
        width = int(rng.integers(24, 60))
        height = min(int(width * 1.3), 110)
        x, y = left + int(rng.integers(0, 66 - width)), int(rng.integers(2, 118 - height))
        centre = (x + width // 2, y + height // 2)
        cv2.ellipse(image, centre, (width // 2, height // 2), 0, 0, 360, (140, 190, 230), -1)
        for side in (-1, 1):
            eye = (centre[0] + side * width // 5, centre[1] - height // 8)
            cv2.circle(image, eye, max(2, width // 12), (20, 20, 20), -1)
        boxes.append((x, y, width, height))
    cv2.imwrite(str(path), image)
    return boxes


def trained_looking(model: paddle.nn.Layer, faces: Path) -> None:
    """Give an untrained detector the batch norm of the drawn faces, and scores that differ.

    Its features then have the size of a trained one's, and its boxes the size of its anchors.
    """
    rng = np.random.default_rng(0)
    for name, parameter in model.named_parameters():
        if name.startswith("blaze_head") and name.endswith("weight"):
            spread = 0.02 if "boxes" in name else 0.1
            parameter.set_value(rng.normal(0.0, spread, parameter.shape).astype("float32"))
    files = sorted((faces / "images" / "0--val").iterdir())
    pixels = [cv2.resize(cv2.imread(str(file)), (IMAGE_SIDE, IMAGE_SIDE)) for file in files]
    image = (np.stack(pixels)[..., ::-1].transpose(0, 3, 1, 2) - 115.0) / 127.5
    norms = [layer for layer in model.sublayers() if isinstance(layer, paddle.nn.BatchNorm2D)]
    momentum = [norm._momentum for norm in norms]
    model.train()
    with paddle.no_grad():
        for norm in norms:
            norm._momentum = 0.0
        model.neck(model.backbone({"image": paddle.to_tensor(image.astype("float32"))}))
    for norm, value in zip(norms, momentum):
        norm._momentum = value
    model.eval()


def lively_blazeface(folder: Path, **changes: Any) -> Path:
    """A detector with an AP of 1 that no one had to train; its configuration names its weights.

    The weights are those of `trained_looking`, and the faces are the best boxes that it finds.

    Args:
        folder: A new folder.
        changes: As `write_blazeface` takes them.
    """
    faces, config = draw_faces(folder / "set"), folder / "face.yml"
    weights = folder / "weights.pdparams"
    write_blazeface(config, faces, **{"weights": str(weights), **changes})
    with restored_config():
        cfg = load_config(config)
        paddle.seed(0)
        model = session.build_model(cfg)
        trained_looking(model, faces)
        paddle.save(model.state_dict(), str(weights))
        dataset, loader = eval_reader(cfg)
        predict = dygraph_predictor(model)
        found = [boxes for batch in loader for boxes in predict(batch)]
    least = np.sort(np.concatenate([boxes.scores for boxes in found]))[-3 * len(found)]
    lines = []
    for record, boxes in zip(dataset.roidbs, found):
        best = boxes[boxes.scores >= least].boxes_xyxy.round().astype(int)
        rows = [f"{x} {y} {u - x + 1} {v - y + 1}" for x, y, u, v in best]
        path = Path(record["im_file"])
        lines += [f"{path.parent.name}/{path.name}", str(len(rows)), *(rows or ["0 0 0 0"])]
    (faces / "val.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return config
