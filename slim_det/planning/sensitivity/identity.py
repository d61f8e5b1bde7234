"""What was measured on what: hashes of model, weights, data and configuration."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import paddle

from slim_det.compress.prune.pruner import Pruner
from slim_det.compress.tensors import fingerprint, tensor_shapes
from slim_det.core.files import sha256_of
from slim_det.planning.sensitivity.measure import Images
from slim_det.training.checkpoint import checkpoint_stem, params_path
from slim_det.version import __version__

# Settings that change no box. The data are hashed separately.
_WITHOUT_EFFECT = frozenset(
    """
    EvalDataset LearningRate OptimizerBuilder Slim TestDataset TestReader TrainDataset TrainReader
    again calibration collate_batch epoch filename log_iter output_eval pretrain_weights print_flops
    print_params repair save_dir schedule share_of snapshot_epoch use_gpu use_vdl vdl_log_dir
    weights widerface_ground_truth worker_num
    """.split()
)


def identify(cfg: Any, model: paddle.nn.Layer, images: Images, pruner: Pruner) -> dict[str, Any]:
    """Everything that the measured losses depend on, as JSON values.

    ``weights`` of the configuration is the file that was loaded into the model.
    """
    return {
        "slim_det": __version__,
        "paddle": paddle.__version__,
        "fingerprint": fingerprint(type(model).__name__, tensor_shapes(model)),
        "weights_sha256": sha256_of(params_path(checkpoint_stem(cfg.weights))),
        "data_sha256": _hash_data(
            images.dataset, images.num_images, cfg.get("widerface_ground_truth")
        ),
        "config_sha256": _hash_config(cfg),
        "num_images": images.num_images,
        "metric": images.scorer.name,
        "criterion": pruner.criterion,
        "align": pruner.align,
        "seed": pruner.seed,
    }


def _hash_data(dataset: Any, num_images: int, ground_truth: str | None) -> str:
    """A hash of every image file and its objects, in order, and of the annotation files."""
    digest = hashlib.sha256()
    for record in dataset.roidbs[:num_images]:
        digest.update(sha256_of(record["im_file"]).encode())
        for key in ("gt_bbox", "gt_class", "is_crowd", "difficult"):
            digest.update(f"{key}{_plain(record.get(key))}".encode())
    for source in filter(None, (dataset.get_anno(), ground_truth)):
        path = Path(source)
        for file in sorted(path.glob("*.mat")) if path.is_dir() else [path]:
            if file.is_file():
                digest.update(sha256_of(file).encode())
    return digest.hexdigest()


def _hash_config(cfg: Any) -> str:
    return hashlib.sha256(json.dumps(_plain(dict(cfg)), sort_keys=True).encode()).hexdigest()


def _plain(value: Any) -> Any:
    """A value as JSON; a value that JSON cannot hold, as the name of its type."""
    if isinstance(value, dict):
        return {str(k): _plain(item) for k, item in value.items() if k not in _WITHOUT_EFFECT}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return value.tolist()
    return value if isinstance(value, (str, int, float, bool, type(None))) else type(value).__name__
