"""`slim-det ratios`: writes a slim file that meets a budget, from measured sensitivities."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

from slim_det.cli import common

if TYPE_CHECKING:
    from slim_det.compress.prune.pruner import Pruner
    from slim_det.planning.budget.costs import TracedModel
    from slim_det.planning.budget.options import Limits
    from slim_det.planning.sensitivity.result import SensitivityResult
    from slim_det.report.budget import Report

TARGETS = {
    "loss": "largest relative loss from pruning each layer alone, e.g. 0.05",
    "macs": "share of the MACs to remove, e.g. 0.5",
    "params": "share of the parameters to remove",
    "latency": "share of the latency to remove; needs --table",
    "latency_ms": "largest latency per image in milliseconds; needs --table",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    common.add_config_arguments(parser, slim_config=False)
    parser.add_argument(
        "--sensitivity", required=True, metavar="FILE", help="result file of `sensitivity`"
    )
    targets = parser.add_argument_group("target (exactly one)")
    for name, text in TARGETS.items():
        targets.add_argument(f"--{name}", type=float, metavar="X", help=text)
    parser.add_argument("--table", metavar="FILE", help="latency table from `profile`")
    parser.add_argument("--output", required=True, metavar="FILE", help="slim file to write")
    parser.add_argument("--png", metavar="FILE", help="plot of the predicted metric by budget")
    parser.add_argument(
        "--align", type=common.positive, default=1, metavar="N",
        help="keep a multiple of N channels in each layer (default 1)",
    )  # fmt: skip
    parser.add_argument(
        "--max_ratio", type=float, default=0.9, metavar="R",
        help="largest share of a layer's channels to remove (default 0.9)",
    )  # fmt: skip
    parser.add_argument(
        "--min_channels", type=common.positive, default=1, metavar="N",
        help="least number of channels to keep in a layer (default 1)",
    )  # fmt: skip
    parser.add_argument(
        "--repair", action="store_true",
        help="repair the layers of the pruned model from training images before it is measured",
    )  # fmt: skip
    parser.add_argument(
        "--criterion", metavar="NAME",
        help="how channels are chosen (default: as in the sensitivity file)",
    )  # fmt: skip
    common.add_image_size_argument(parser)
    parser.add_argument(
        "--no_measure", action="store_true", help="do not evaluate the pruned model (much faster)"
    )
    common.add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Solve, check and measure, and write the files only then."""
    from slim_det.compress.prune.importance import check_criterion
    from slim_det.compress.prune.pruner import FROM_IMAGES, LEAST_SQUARES, Pruner
    from slim_det.core.files import sha256_of, write_atomically
    from slim_det.planning.budget.plan import check_pruner, ratios_of
    from slim_det.planning.budget.prepare import make_search
    from slim_det.planning.budget.targets import read_target
    from slim_det.planning.profile import read_any_table
    from slim_det.planning.sensitivity.result import read_result
    from slim_det.report.budget import Provenance, Report, outputs

    target = read_target(args.loss, args.macs, args.params, args.latency, args.latency_ms)
    limits = _limits(args)
    _check_files(args, target.resource == "latency_ms")
    if args.criterion:
        check_criterion(args.criterion, "--criterion", FROM_IMAGES)
    result = read_result(args.sensitivity)
    table = read_any_table(args.table) if args.table else None
    source = Provenance(
        file=os.path.basename(args.sensitivity),
        sha256=sha256_of(args.sensitivity),
        metric=result.metric,
        baseline=result.baseline,
        criterion=args.criterion or result.criterion,
    )
    cfg, traced = _traced(args, result)
    search = make_search(traced, result, args.sensitivity, limits, table)
    solution = search.solve(target)
    ratios = ratios_of(traced, solution, search.losses, limits.align)
    repair = LEAST_SQUARES if args.repair else None
    pruner = Pruner(source.criterion, pruned_ratios=ratios, align=limits.align, repair=repair)
    check_pruner(traced, solution, pruner)
    measured = None if args.no_measure else _measure(cfg, traced, pruner)
    report = Report(target, solution, ratios, limits.align, source, measured, repair)
    write_atomically(outputs(report, args.output, args.png))
    common.save_json(args, report.as_dict())
    _print(report, traced)
    print(f"written to {args.output}; train with it: --slim_config {args.output}")
    return 0


def _limits(args: argparse.Namespace) -> Limits:
    from slim_det.core.errors import ConfigError
    from slim_det.planning.budget.options import Limits

    if not 0.0 < args.max_ratio < 1.0:
        raise ConfigError(
            f"--max_ratio {args.max_ratio:g} is not valid; expected a share between 0 and 1 "
            "(exclusive)"
        )
    return Limits(args.align, args.max_ratio, args.min_channels)


def _check_files(args: argparse.Namespace, latency: bool) -> None:
    """Check in advance that every file can be read or written."""
    from slim_det.core.errors import ConfigError

    if latency and not args.table:
        raise ConfigError("a latency target needs --table FILE, a latency table from `profile`")
    for flag, path, endings in (
        ("--output", args.output, (".yml", ".yaml")),
        ("--png", args.png, (".png",)),
    ):
        if path is None:
            continue
        folder = os.path.dirname(os.path.abspath(path))
        if not path.endswith(endings) or os.path.isdir(path) or not os.access(folder, os.W_OK):
            raise ConfigError(
                f"{flag} '{path}': expected a {' or '.join(endings)} file in a writable folder"
            )


def _traced(args: argparse.Namespace, result: SensitivityResult) -> tuple[Any, TracedModel]:
    """The configuration and the traced model, with weights if they are needed."""
    from slim_det.compress.prune.groups import find_groups
    from slim_det.detectors.image_size import image_size_hw
    from slim_det.evaluate.data.check import check_dataset
    from slim_det.evaluate.matching import metric_name
    from slim_det.graph.trace import trace_detector
    from slim_det.planning.budget.costs import TracedModel, uneven_groups
    from slim_det.planning.budget.prepare import check_same_model, losses_by_group
    from slim_det.training import session
    from slim_det.training.config import load_config

    def traced(model: Any) -> TracedModel:
        trace = trace_detector(model, image_size_hw(cfg, args.image_size))
        return TracedModel(model, trace, find_groups(model, trace))

    cfg = load_config(args.config, args.opt)
    session.set_device(cfg)
    if args.no_measure:
        unpruned = traced(session.build_model(cfg))
        check_same_model(unpruned, result, args.sensitivity)
        names = losses_by_group(unpruned, result.groups, args.sensitivity)
        if uneven_groups(unpruned.groups).isdisjoint(names):
            return cfg, unpruned
    else:
        check_dataset(cfg, "EvalDataset")
        _check_metric(metric_name(cfg), result, args.sensitivity)
    return cfg, traced(session.model_with_weights(cfg, cfg.get("weights")))


def _check_metric(name: str, result: SensitivityResult, source: str) -> None:
    from slim_det.core.errors import SensitivityError
    from slim_det.planning.sensitivity.result import WITHOUT_EVALUATION

    if result.metric not in (name, "unknown", *WITHOUT_EVALUATION):
        raise SensitivityError(
            f"'{source}' holds {result.metric}, but the configuration measures {name}; expected "
            "the configuration that it was measured with, or --no_measure"
        )


def _measure(cfg: Any, traced: TracedModel, pruner: Pruner) -> float:
    """Prune the model and evaluate it."""
    from slim_det.evaluate.evaluation import evaluate_model

    cut = pruner.cut(traced.model, traced.trace, traced.groups, cfg=cfg)
    return evaluate_model(cfg, cut).ap


def _print(report: Report, traced: TracedModel) -> None:
    from slim_det.report.budget import front_table, ratio_table

    common.print_table(ratio_table(report, traced.groups))
    common.print_table(front_table(report))
    print(report)
