"""Complete models: measured with their convolutions, and exported unpruned and pruned."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import paddle
import yaml

from slim_det.compress.prune.groups import find_groups
from slim_det.compress.prune.plan import plan_of
from slim_det.compress.prune.pruner import Pruner
from slim_det.compress.tensors import tensor_shapes
from slim_det.deploy.latency import random_batch
from slim_det.deploy.predictor import INFER_CFG, Predictor
from slim_det.deploy.preprocessing import deployed_program, fused_normalization
from slim_det.detectors.image_size import image_size_hw
from slim_det.detectors.layer_finder import LayerFinder
from slim_det.detectors.yolov3_head import PRESETS, has_yolo_head
from slim_det.graph.trace import trace_detector
from slim_det.planning.profile.grid import shapes_to_measure
from slim_det.planning.profile.measure import counted, measure
from slim_det.planning.profile.shapes import ConvShape, conv_shapes
from slim_det.planning.profile.table import LatencyTable, this_machine
from slim_det.training import session
from slim_det.training.config import SlimConfig

UNPRUNED = "uncut"


def profile_model(
    model: paddle.nn.Layer, cfg: Any, shares: Sequence[float], threads: int, repeats: int
) -> LatencyTable:
    """Measure the convolutions of a detector at a grid of widths, and the detector itself.

    Args:
        model: With trained or random weights; only the latency of NMS depends on them.
        cfg: ppdet's configuration, for the image size.
        shares: Shares of each convolution's width, each above 0 and at most 1.
        threads: CPU threads.
        repeats: Timed runs of each program.
    """
    size_hw = image_size_hw(cfg)
    trace = trace_detector(model, size_hw)
    shapes = shapes_to_measure(model, trace, shares)
    with tempfile.TemporaryDirectory(prefix="slim_det_profile_") as folder:
        exported = export_for_timing(model, cfg, Path(folder) / "model")
        predictor = Predictor(exported, threads)
        run_model = functools.partial(predictor, random_batch(predictor.image_size_hw))
        measured = measure(shapes, run_model, threads, repeats)
    alone = LatencyTable(this_machine(threads), measured.entries)
    convs_ms = alone.model_ms(shape for _, shape in conv_shapes(trace))
    return LatencyTable(
        alone.origin, alone.entries, counted(repeats), size_hw, measured.model_ms - convs_ms
    )


def models_to_check(
    cfg: Any, weights: str | None, slim: SlimConfig | None, folder: Path
) -> dict[str, tuple[Path, list[ConvShape]]]:
    """Export a detector unpruned and pruned.

    Args:
        cfg: ppdet's configuration.
        weights: Trained weights; None for random ones.
        slim: How to prune it; None for every preset, if it has the head of a YOLOv3 and its weights
            are unpruned.
        folder: One folder per model is written here.

    Returns:
        Name of the model -> (folder, convolutions in execution order).
    """
    model = model_to_profile(cfg, weights)
    trace = trace_detector(model, image_size_hw(cfg))
    models = {UNPRUNED: (model, conv_shapes(trace))}
    if slim is not None:
        pruned = session.apply_strategies(model_to_profile(cfg, weights), cfg, slim)
        shapes = conv_shapes(trace_detector(pruned, image_size_hw(cfg)))
        models[Path(slim.path).stem] = (pruned, shapes)
    elif plan_of(model) is None and has_yolo_head(LayerFinder(model).paths):
        groups = find_groups(model, trace)
        for preset in PRESETS:
            unpruned = model_to_profile(cfg, weights)
            pruned = Pruner(pruned_ratios=preset).cut(unpruned, trace, groups)
            models[preset] = (pruned, conv_shapes(trace, tensor_shapes(pruned)))
    return {
        name: (export_for_timing(model, cfg, folder / name), [shape for _, shape in shapes])
        for name, (model, shapes) in models.items()
    }


def model_to_profile(cfg: Any, weights: str | None) -> paddle.nn.Layer:
    """The detector, pruned as the plan of its weights says; None for random weights."""
    return session.model_with_weights(cfg, weights) if weights else session.build_model(cfg)


def export_for_timing(model: paddle.nn.Layer, cfg: Any, folder: Path) -> Path:
    """Export a detector to a new folder without data and without comparing boxes.

    Returns:
        The folder, for `slim_det.deploy.predictor.Predictor`.
    """
    folder.mkdir(parents=True)
    size_hw = image_size_hw(cfg)
    deployed_program(model, size_hw, fused_normalization(cfg)).save(folder / "model")
    resize = {"type": "Resize", "target_size": list(size_hw)}
    settings = {"Preprocess": [resize], "label_list": []}
    (folder / INFER_CFG).write_text(yaml.safe_dump(settings), encoding="utf-8")
    return folder
