"""`slim-det eval`: AP of a checkpoint or an exported model."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from slim_det.cli import common
from slim_det.core.errors import ConfigError

if TYPE_CHECKING:
    from slim_det.evaluate.detections import Predict
    from slim_det.training.config import SlimConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    common.add_config_arguments(parser)
    common.add_artifact_arguments(parser)
    common.add_json_argument(parser)
    faces = parser.add_argument_group("faces", "with metric: WiderFace")
    faces.add_argument(
        "--ground_truth", metavar="DIR",
        help="folder of WIDER FACE's .mat files, for the official easy, medium and hard settings "
        "(default: the annotations, with height bands)",
    )  # fmt: skip
    faces.add_argument(
        "--multi_scale", action="store_true",
        help="also detect on mirrored, smaller and larger copies of each image, and vote (slow)",
    )  # fmt: skip
    faces.add_argument(
        "--save_pred", metavar="DIR", help="write the detections in WIDER FACE's text format"
    )


def run(args: argparse.Namespace) -> int:
    """Evaluate and print one line."""
    from slim_det.core.files import output_folders
    from slim_det.deploy.predictor import Predictor
    from slim_det.evaluate.data.check import check_dataset
    from slim_det.evaluate.evaluation import evaluate
    from slim_det.evaluate.matching import metric_name

    cfg, slim = common.read_configs(args)
    _check_face_flags(args, cfg)
    if args.ground_truth:
        cfg["widerface_ground_truth"] = args.ground_truth
    artifact = Predictor(args.artifact, args.threads) if args.artifact else None
    labels = {f"artifact '{args.artifact}'": artifact.settings["label_list"]} if artifact else {}
    check_dataset(cfg, "EvalDataset", labels)
    metric_name(cfg)  # raises for an unknown metric before a model is loaded
    predict, engine, latency_runs = (
        (artifact, "paddle_inference", 10) if artifact else _predictor(args, cfg, slim)
    )
    reader = artifact.reader if artifact else None
    with output_folders(*filter(None, [args.save_pred])):
        result = evaluate(cfg, predict, engine, args.artifact, latency_runs, args.save_pred, reader)
    figures = result.as_dict()
    if artifact:
        figures["precision"] = artifact.precision
    print(result)
    common.save_json(args, figures)
    return 0


def _check_face_flags(args: argparse.Namespace, cfg: Any) -> None:
    """Check the flags that need WIDER FACE or a model that accepts images of any size."""
    from slim_det.evaluate.multi_scale import require_any_size

    for flag in ("ground_truth", "save_pred"):
        if getattr(args, flag) and cfg.metric != "WiderFace":
            raise ConfigError(
                f"--{flag} needs metric: WiderFace; the configuration has metric: {cfg.metric}"
            )
    if args.multi_scale:
        require_any_size(cfg)
    if args.artifact and _several_scales(args, cfg):
        raise ConfigError(
            f"--multi_scale: the artifact '{args.artifact}' accepts only one image size; expected "
            "a checkpoint (-o weights=PATH) and no --artifact"
        )


def _several_scales(args: argparse.Namespace, cfg: Any) -> bool:
    return bool(args.multi_scale or cfg.get("multi_scale_eval"))


def _predictor(
    args: argparse.Namespace, cfg: Any, slim: SlimConfig | None
) -> tuple[Predict, str, int]:
    """The model's predictor, the name of its engine, and the number of latency runs."""
    from slim_det.evaluate.evaluation import dygraph_predictor
    from slim_det.evaluate.multi_scale import MultiScale
    from slim_det.training import session

    model = session.model_with_weights(cfg, cfg.get("weights"), slim)
    if _several_scales(args, cfg):
        return MultiScale(model, cfg), "dygraph_multi_scale", 1
    return dygraph_predictor(model), "dygraph", 10
