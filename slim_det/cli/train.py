"""`slim-det train`: ppdet's training of a model that is compressed before the Trainer exists."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

from slim_det.cli.common import add_config_arguments, read_configs

if TYPE_CHECKING:
    from slim_det.training.config import SlimConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of PaddleDetection's training script."""
    add_config_arguments(parser)
    parser.add_argument("--eval", action="store_true", help="evaluate after every snapshot")
    parser.add_argument("-r", "--resume", metavar="CHECKPOINT", help="resume from a checkpoint")
    parser.add_argument(
        "--seed", type=int, metavar="N", help="seed of weights, data order and augmentation"
    )
    parser.add_argument(
        "--enable_ce", action="store_true", help="the same as --seed 0, as in PaddleDetection"
    )
    parser.add_argument(
        "--skip_teacher_eval", action="store_true", help="do not evaluate the teacher first"
    )
    parser.add_argument("--amp", action="store_true", help="mixed precision (GPU)")
    parser.add_argument("--fleet", action="store_true", help="train with Paddle's fleet")
    parser.add_argument("--use_vdl", action="store_true", help="log to VisualDL")
    parser.add_argument(
        "--vdl_log_dir", default="vdl_log_dir/scalar", metavar="DIR", help="folder for VisualDL"
    )


def run(args: argparse.Namespace) -> int:
    """Train; nothing is written before all inputs have been checked."""
    from slim_det.core.files import require_writable

    cfg, slim = read_configs(args)
    for flag in ("amp", "fleet", "skip_teacher_eval", "use_vdl", "vdl_log_dir"):
        if getattr(args, flag) is not False:
            cfg[flag] = getattr(args, flag)
    folder = os.path.join(cfg.save_dir, cfg.filename)
    _check_data(args, cfg)
    _init_processes(args, cfg)
    # Otherwise ppdet writes its detections to the working directory.
    cfg.setdefault("output_eval", folder)
    trainer = _make_trainer(args, cfg, slim)
    require_writable(folder)
    if args.eval and slim and not args.resume:
        _evaluate_before(cfg)
    trainer.train(args.eval)
    return 0


def _check_data(args: argparse.Namespace, cfg: Any) -> None:
    from slim_det.evaluate.data.check import check_training

    check_training(cfg, evaluates=args.eval)


def _init_processes(args: argparse.Namespace, cfg: Any) -> None:
    import paddle.distributed as dist
    from ppdet.engine import init_fleet_env, init_parallel_env, set_random_seed

    if cfg.get("fleet"):
        init_fleet_env(cfg.get("find_unused_parameters", False))
    elif dist.get_world_size() > 1:
        # With a single process it would only print a banner.
        init_parallel_env()
    if args.enable_ce or args.seed is not None:
        set_random_seed(args.seed or 0)


def _make_trainer(args: argparse.Namespace, cfg: Any, slim: SlimConfig | None) -> Any:
    from ppdet.engine import Trainer

    from slim_det.core.errors import ConfigError, DataError
    from slim_det.training import session

    # ppdet's Trainer takes the model of the configuration instead of building one.
    cfg["model"] = session.model_for_training(cfg, slim, args.resume)
    trainer = Trainer(cfg, mode="train")
    if len(trainer.loader) == 0:
        raise DataError(
            f"TrainDataset has {len(trainer.dataset)} images, less than one batch per process "
            f"(TrainReader.batch_size is {cfg['TrainReader']['batch_size']}, drop_last is true)"
        )
    if args.resume:
        trainer.resume_weights(args.resume)
    if trainer.start_epoch >= cfg.epoch:
        raise ConfigError(
            f"'{args.resume}' was trained for {trainer.start_epoch} epochs and epoch is "
            f"{cfg.epoch}: nothing is left to train; add -o epoch=N with a larger N"
        )
    return trainer


def _evaluate_before(cfg: Any) -> None:
    """Log the metric of the compressed model before fine-tuning."""
    import logging

    import paddle.distributed as dist

    from slim_det.compress.strategy import hooks_of
    from slim_det.evaluate.evaluation import evaluate_model

    is_measured = any(hook.measures_start for hook in hooks_of(cfg["model"]))
    if dist.get_rank() == 0 and not is_measured:
        result = evaluate_model(cfg, cfg["model"])
        logging.getLogger("slim_det").info("before fine-tuning: %s", result)
