"""`slim-det verify`: a pruned model against the unpruned one, or an artifact against its model."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from slim_det.cli import common

if TYPE_CHECKING:
    from slim_det.verify.stages import Stage


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    common.add_config_arguments(parser)
    common.add_image_size_argument(parser)
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of the random image (default 0)"
    )
    parser.add_argument(
        "--artifact", metavar="DIR",
        help="compare this exported model in every engine with the model it came from",
    )  # fmt: skip
    common.add_image_arguments(parser)
    parser.add_argument(
        "--images", nargs="+", metavar="PATH",
        help="with --artifact: image files or folders (default: the first of EvalDataset)",
    )  # fmt: skip
    parser.add_argument("--no_eval", action="store_true", help="do not measure AP")
    parser.add_argument(
        "--eval_images",
        type=common.positive,
        metavar="N",
        help="measure AP only on the first N images",
    )
    common.add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Compare and print every stage; exit code 1 if one fails."""
    return _verify_artifact(args) if args.artifact else _verify_pruned(args)


def _verify_pruned(args: argparse.Namespace) -> int:
    """Compare the head outputs of a pruned model with those of the masked unpruned one."""
    from slim_det.compress.prune.plan import describe_cost, plan_of
    from slim_det.core.errors import ConfigError, PlanError
    from slim_det.detectors.image_size import image_size_hw
    from slim_det.training import session
    from slim_det.verify.masked import compare_with_masked, what_is_compared

    for flag in ("infer_img", "infer_dir", "images", "no_eval", "eval_images"):
        if getattr(args, flag):
            raise ConfigError(f"--{flag} is for exported models; add --artifact DIR")
    cfg, slim = common.read_configs(args)
    size_hw = image_size_hw(cfg, args.image_size)
    pruned = session.model_with_weights(cfg, cfg.get("weights"), slim)
    plan = plan_of(pruned)
    if plan is None:
        raise PlanError(
            f"'{cfg.weights}' are the weights of an unpruned model: there is nothing to verify; "
            "add --slim_config, or give the weights of a pruned model, or an exported model with "
            "--artifact"
        )
    stages = compare_with_masked(pruned, session.build_model(cfg), plan, size_hw, args.seed)
    for stage in stages:
        print(stage)
    compared = what_is_compared(plan)
    if plan.repair is not None:
        print(compared)
    return _conclude(args, stages, describe_cost(plan), compared=compared)


def _verify_artifact(args: argparse.Namespace) -> int:
    """Compare an artifact with its model in every engine."""
    from slim_det.evaluate.data.check import check_dataset
    from slim_det.training import session
    from slim_det.verify.artifact import verify_artifact

    cfg, slim = common.read_configs(args)
    if not args.no_eval:
        check_dataset(cfg, "EvalDataset")
    images = _images(args, cfg)
    model = session.model_with_weights(cfg, cfg.get("weights"), slim)
    stages = verify_artifact(model, cfg, args.artifact, images, not args.no_eval, args.eval_images)
    _print(stages)
    skipped = [stage.name for stage in stages if stage.passed is None]
    left_out = f" ({', '.join(skipped)} skipped)" if skipped else ""
    return _conclude(args, stages, f"{args.artifact}{left_out}")


def _conclude(args: argparse.Namespace, stages: list[Stage], subject: str, **more: str) -> int:
    """Print the verdict on all stages, save them, and return the exit code."""
    passed = bool(stages) and all(stage.verdict != "FAIL" for stage in stages)
    print(f"{'pass' if passed else 'FAIL'}  {subject}")
    figures = {"stages": [stage.as_dict() for stage in stages], "passed": passed, **more}
    common.save_json(args, figures)
    return 0 if passed else 1


def _images(args: argparse.Namespace, cfg: Any) -> list[str]:
    """The given image files, or the first evaluation images."""
    from pathlib import Path

    from slim_det.core.errors import ConfigError
    from slim_det.evaluate.data.image_files import find_images, require_images
    from slim_det.evaluate.images import eval_images

    if args.images and (args.infer_img or args.infer_dir):
        raise ConfigError("--images cannot be combined with --infer_img or --infer_dir; give one")
    if args.infer_img or args.infer_dir:
        return find_images(args.infer_img, args.infer_dir)
    if not args.images:
        return eval_images("add --infer_img FILE or --infer_dir FOLDER")
    found: list[str] = []
    for path in args.images:
        if Path(path).is_dir():
            found += find_images(None, path)
        else:
            require_images([path])
            found.append(path)
    return found


def _print(stages: list[Stage]) -> None:
    """Print the stages as a table."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("stage", "max abs", "cosine", "AP", "", "note"):
        numeric = name in ("max abs", "cosine", "AP")
        table.add_column(name, justify="right" if numeric else "left", no_wrap=name != "note")
    for stage in stages:
        figures = [
            "-" if value is None else form.format(value)
            for value, form in (
                (stage.max_abs, "{:.1e}"),
                (stage.cosine, "{:.7f}"),
                (stage.ap, "{:.4f}"),
            )
        ]
        table.add_row(stage.name, *figures, stage.verdict, stage.note)
    common.print_table(table)
