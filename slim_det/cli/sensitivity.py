"""`slim-det sensitivity`: how much AP is lost when each layer is pruned at each ratio."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

from slim_det.cli import common
from slim_det.core.errors import ConfigError, nearest

if TYPE_CHECKING:
    from slim_det.planning.sensitivity.result import SensitivityResult


METHODS = ("ap", "error")

# Flags that only mean something where points are evaluated -> their defaults.
_OF_EVALUATION = {
    "criterion": "l1_norm",
    "metric": None,
    "workers": 1,
    "shard": None,
    "cache_mb": 1000,
    "bootstrap": 0,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    common.add_config_arguments(parser, required=False, slim_config=False)
    parser.add_argument(
        "--params", nargs="+", metavar="LAYER",
        help="layers, as names or globs (default: the 18 of a YOLOv3 head, otherwise all groups)",
    )  # fmt: skip
    parser.add_argument(
        "--ratios", nargs="+", default=["0.1:0.9:0.1"], metavar="R",
        help="shares of channels to remove: start:end:step or a list (default 0.1:0.9:0.1)",
    )  # fmt: skip
    parser.add_argument(
        "--method", choices=METHODS, default="ap",
        help="ap: evaluate the detector at every point (default); error: what the remaining "
        "channels cannot make good, found from training images without any evaluation",
    )  # fmt: skip
    parser.add_argument(
        "--images", metavar="DIR", help="with --method error: images (default: TrainDataset)"
    )
    parser.add_argument(
        "--criterion", default="l1_norm", metavar="NAME",
        help="how channels are chosen (default l1_norm)",
    )  # fmt: skip
    parser.add_argument(
        "--metric", metavar="NAME", help="ap (default), or for VOC: 11point, integral"
    )
    parser.add_argument(
        "--num_images", type=common.positive, metavar="N",
        help="use the first N images (default: all; with --method error at most 256)",
    )  # fmt: skip
    parser.add_argument(
        "--output", default="sensitivity.json", metavar="FILE",
        help="result (default sensitivity.json); a plot and the journal are written beside it",
    )  # fmt: skip
    parser.add_argument(
        "--workers", type=common.positive, default=1, metavar="N", help="processes (default 1)"
    )
    parser.add_argument("--shard", metavar="I/N", help="measure only the I-th of N parts")
    parser.add_argument(
        "--cache_mb", type=common.positive, default=1000, metavar="MB",
        help="memory for cached activations in each process (default 1000)",
    )  # fmt: skip
    parser.add_argument(
        "--bootstrap", type=common.positive, default=0, metavar="K",
        help="confidence bands from K resamplings of the images",
    )  # fmt: skip
    parser.add_argument(
        "--merge", nargs="+", metavar="FILE", help="merge results of shards; measure nothing"
    )
    parser.add_argument(
        "--import_pickle", metavar="FILE", help="convert PaddleSlim's sensitivities.data"
    )
    common.add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Measure, merge or import; print the table; write the result and its plot."""
    from slim_det.core.files import require_writable
    from slim_det.planning.sensitivity.result import write_result
    from slim_det.report.sensitivity_plot import plot_losses

    args.output = _output(args)
    if not args.output.endswith(".json"):
        raise ConfigError(f"--output '{args.output}': expected a name that ends in .json")
    if args.images and args.method != "error":
        raise ConfigError("--images is read by --method error only: add that, or leave it out")
    if args.merge or args.import_pickle:
        result = _merged(args)
    else:
        result = _from_errors(args) if args.method == "error" else _measured(args)
    require_writable(os.path.dirname(os.path.abspath(args.output)))
    write_result(args.output, result)
    picture = f"{args.output[: -len('.json')]}.png"
    if result.groups:
        plot_losses(result, picture)
    _print(result)
    print(f"{args.output}, {picture}" if result.groups else args.output)
    common.save_json(args, result.as_dict())
    return 0


def _measured(args: argparse.Namespace) -> SensitivityResult:
    from slim_det.compress.prune.importance import check_criterion
    from slim_det.evaluate.data.check import check_dataset
    from slim_det.planning.sensitivity.analysis import Settings, analyse
    from slim_det.planning.sensitivity.grid import read_ratios
    from slim_det.training import session
    from slim_det.training.config import apply_overrides, load_config

    if not args.config:
        raise ConfigError("-c is missing: expected a configuration, --merge or --import_pickle")
    check_criterion(args.criterion, "--criterion")
    settings = Settings(
        ratios=tuple(read_ratios(" ".join(args.ratios))),
        params=tuple(args.params) if args.params else None,
        criterion=args.criterion,
        num_images=args.num_images,
        workers=args.workers,
        shard=_shard(args),
        cache_mb=args.cache_mb,
        bootstrap=args.bootstrap,
    )
    cfg = load_config(args.config, args.opt)
    apply_overrides([*args.opt, *_metric_overrides(args.metric, cfg)])
    session.set_device(cfg)
    check_dataset(cfg, "EvalDataset")
    model = session.model_with_weights(cfg, cfg.get("weights"))
    return analyse(cfg, model, settings, args.output)


def _from_errors(args: argparse.Namespace) -> SensitivityResult:
    from slim_det.compress.prune.reconstruct.settings import read_calibration
    from slim_det.planning.sensitivity.error_curves import error_curves
    from slim_det.planning.sensitivity.grid import read_ratios
    from slim_det.training import session
    from slim_det.training.config import load_config

    if not args.config:
        raise ConfigError("-c is missing: expected a configuration")
    for flag, default in _OF_EVALUATION.items():
        if getattr(args, flag) != default:
            raise ConfigError(f"--{flag} cannot be combined with --method error: leave it out")
    if _launched_shard():
        raise ConfigError("--method error runs in one process: start it without the launcher")
    calibration = read_calibration(common.calibration_flags(args))
    ratios = tuple(read_ratios(" ".join(args.ratios)))
    params = tuple(args.params) if args.params else None
    cfg = load_config(args.config, args.opt)
    session.set_device(cfg)
    model = session.model_with_weights(cfg, cfg.get("weights"))
    return error_curves(cfg, model, ratios, params, calibration)


def _merged(args: argparse.Namespace) -> SensitivityResult:
    from slim_det.planning.sensitivity.merge import merge_results
    from slim_det.planning.sensitivity.paddleslim_files import read_paddleslim_pickle
    from slim_det.planning.sensitivity.result import read_result

    if args.config:
        raise ConfigError("-c cannot be combined with --merge or --import_pickle: leave -c out")
    if args.method == "error":
        raise ConfigError(
            "--method error cannot be combined with --merge or --import_pickle: leave it out"
        )
    if args.import_pickle:
        if args.merge:
            raise ConfigError(
                "--merge and --import_pickle cannot be combined: run one after the other"
            )
        return read_paddleslim_pickle(args.import_pickle)
    return merge_results([read_result(path) for path in args.merge], args.merge)


def _metric_overrides(metric: str | None, cfg: Any) -> list[str]:
    """Overrides of the configuration for ``--metric``."""
    if metric in (None, "ap"):
        return []
    if cfg.metric == "VOC" and metric in ("11point", "integral"):
        return [f"map_type={metric}"]
    choices = ["ap", "11point", "integral"] if cfg.metric == "VOC" else ["ap"]
    raise ConfigError(f"--metric '{metric}' for metric {cfg.metric}{nearest(str(metric), choices)}")


def _shard(args: argparse.Namespace) -> tuple[int, int] | None:
    from slim_det.planning.sensitivity.grid import read_shard

    text = args.shard or _launched_shard()
    return read_shard(text) if text else None


def _launched_shard() -> str | None:
    """The part of this process if Paddle's launcher has started several."""
    count = os.environ.get("PADDLE_TRAINERS_NUM", "1")
    if not count.isdigit() or int(count) < 2:
        return None
    return f"{int(os.environ.get('PADDLE_TRAINER_ID', '0')) + 1}/{count}"


def _output(args: argparse.Namespace) -> str:
    """``--output``; each process of Paddle's launcher gets its own file."""
    shard = None if args.shard or args.merge or args.import_pickle else _launched_shard()
    if not shard:
        return str(args.output)
    stem, suffix = os.path.splitext(args.output)
    return f"{stem}.{shard.replace('/', 'of')}{suffix}"


def _print(result: SensitivityResult) -> None:
    from slim_det.planning.sensitivity.result import loss_table

    common.print_table(loss_table(result))
    print(result)
