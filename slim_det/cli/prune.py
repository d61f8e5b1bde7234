"""`slim-det prune`: cut a trained detector, repair it from images if asked to, and save it."""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slim_det.cli import common
from slim_det.core.errors import ConfigError, PlanError

if TYPE_CHECKING:
    import paddle

    from slim_det.compress.prune.plan import Plan
    from slim_det.compress.prune.pruner import Pruner
    from slim_det.evaluate.evaluation import EvalResult
    from slim_det.training.config import SlimConfig

CHECKPOINT = "model_pruned"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    common.add_config_arguments(parser)
    parser.add_argument(
        "--images", metavar="DIR",
        help="learn from the images of this folder (default: those of TrainDataset)",
    )  # fmt: skip
    parser.add_argument(
        "--num_images", type=common.positive, metavar="N",
        help="learn from the first N images (default: as the slim file says, otherwise 256)",
    )  # fmt: skip
    common.add_save_dir_argument(parser, CHECKPOINT)
    parser.add_argument(
        "--eval", action="store_true",
        help="measure the metric before, after the cut and after the repair",
    )  # fmt: skip
    common.add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Prune, repair, save; nothing is written before all inputs have been checked."""
    from ppdet.core.workspace import create

    from slim_det.core.files import output_folders
    from slim_det.evaluate.data.check import check_dataset

    if not args.slim_config:
        raise ConfigError("--slim_config is missing; expected a slim file with slim: Pruner")
    cfg, slim = common.read_configs(args)
    if slim is None or "Pruner" not in slim.strategies:
        raise ConfigError(f"--slim_config '{args.slim_config}': expected slim: Pruner")
    _set_calibration(args, cfg)
    pruner = create("Pruner")
    _check_images(args, pruner)
    if args.eval:
        check_dataset(cfg, "EvalDataset")
    stem = Path(args.save_dir or cfg.save_dir) / cfg.filename / CHECKPOINT
    _check_other_file(cfg, stem)
    with output_folders(stem.parent):
        figures = _prune(args, cfg, replace(slim, strategies=("Pruner",)), pruner.again, stem)
    print(figures["checkpoint"])
    common.save_json(args, figures)
    return 0


def _check_other_file(cfg: Any, stem: Path) -> None:
    """Keep the weights that are pruned."""
    from slim_det.training.checkpoint import checkpoint_stem, params_path

    weights = cfg.get("weights")
    if weights and params_path(checkpoint_stem(weights)).resolve() == params_path(stem).resolve():
        raise ConfigError(
            f"'{weights}' would be replaced by what is left of them; expected another --save_dir"
        )


def _set_calibration(args: argparse.Namespace, cfg: Any) -> None:
    """Let the flags override the slim file."""
    flags = common.calibration_flags(args)
    if flags:
        settings = cfg["Pruner"].get("calibration") or {}
        if isinstance(settings, dict):  # anything else is refused by the pruner
            cfg["Pruner"]["calibration"] = {**settings, **flags}


def _check_images(args: argparse.Namespace, pruner: Pruner) -> None:
    """Check the folder of images before the model is built, and that flags have a reader."""
    from slim_det.evaluate.data.image_files import find_images

    flags, folder = common.calibration_flags(args), pruner.calibration.folder
    if flags and not pruner.needs_images:
        raise ConfigError(
            f"{'--images' if args.images else '--num_images'} is read by criterion: elimination "
            f"and repair: least_squares only, and '{args.slim_config}' asks for neither"
        )
    if folder and pruner.needs_images:
        find_images(None, folder, "--images" if args.images else "Pruner.calibration.folder")


def _prune(
    args: argparse.Namespace, cfg: Any, slim: SlimConfig, again: bool, stem: Path
) -> dict[str, Any]:
    from slim_det.compress.prune.plan import Plan, plan_of
    from slim_det.compress.steps import step_of, steps_of
    from slim_det.report.pruning import layer_table, pruning_figures
    from slim_det.training import checkpoint, session

    model = session.model_with_weights(cfg, cfg.get("weights"))
    if step_of(model, Plan) is not None and not again:
        raise PlanError(
            f"'{cfg.weights}' are pruned already; expected weights that are not, or "
            "Pruner.again: true to prune what is left"
        )
    metrics: dict[str, EvalResult] = {}
    _measure(args, cfg, model, metrics, "before")
    started = time.perf_counter()
    model = session.prune_weights(model, cfg, slim)
    seconds = time.perf_counter() - started
    plan = plan_of(model)
    if plan is None:
        raise PlanError(f"'{slim.path}' has pruned nothing")
    if plan.repair is not None:
        _measure(args, cfg, _only_cut(args, cfg, plan), metrics, "after the cut")
        common.print_table(layer_table(plan))
        _measure(args, cfg, model, metrics, "after the repair")
    else:
        _measure(args, cfg, model, metrics, "after the cut")
    checkpoint.save_weights(stem, model.state_dict(), steps_of(model))
    return {
        "checkpoint": str(checkpoint.params_path(stem)),
        "seconds": seconds,
        **pruning_figures(plan, metrics),
    }


def _only_cut(args: argparse.Namespace, cfg: Any, plan: Plan) -> paddle.nn.Layer | None:
    """The same model cut in the same way, but not repaired; None if it is not to be measured."""
    from slim_det.compress.prune.plan import apply_plan, plan_of
    from slim_det.training import session
    from slim_det.verify.masked import expand_weights

    if not args.eval:
        return None
    model = session.model_with_weights(cfg, cfg.get("weights"))
    earlier = plan_of(model)
    if earlier is not None:  # the plan of both cuts is one of the unpruned model
        pruned, model = model, session.build_model(cfg)
        expand_weights(model, pruned, earlier)
    apply_plan(model, plan)
    return model


def _measure(
    args: argparse.Namespace,
    cfg: Any,
    model: paddle.nn.Layer | None,
    metrics: dict[str, EvalResult],
    label: str,
) -> None:
    """Evaluate a model if requested, and print the result."""
    from slim_det.evaluate.evaluation import evaluate_model

    if args.eval and model is not None:
        metrics[label] = evaluate_model(cfg, model)
        print(f"{label}: {metrics[label]}")
