"""`slim-det ratios`: writes a slim file that meets a budget, from measured sensitivities."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slim_det.cli import common

if TYPE_CHECKING:
    from slim_det.compress.prune.pruner import Pruner
    from slim_det.planning.budget.active_run import ActiveMeasurement
    from slim_det.planning.budget.candidates import Candidate
    from slim_det.planning.budget.costs import TracedModel
    from slim_det.planning.budget.judge import Judged
    from slim_det.planning.budget.options import Limits
    from slim_det.planning.budget.search import BudgetSearch
    from slim_det.planning.budget.targets import Target
    from slim_det.planning.profile.table import LatencyTable
    from slim_det.planning.sensitivity.result import SensitivityResult
    from slim_det.report.budget import Provenance, Report

TARGETS = {
    "loss": "largest relative loss from pruning each layer alone, e.g. 0.05",
    "macs": "share of the MACs to remove, e.g. 0.5",
    "params": "share of the parameters to remove",
    "latency": "share of the latency to remove; needs --table",
    "latency_ms": "largest latency per image in milliseconds; needs --table",
}

_CANDIDATES_WITH_REPAIR = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    common.add_config_arguments(parser, slim_config=False)
    parser.add_argument(
        "--sensitivity", required=True, metavar="FILE", help="result file of `sensitivity`"
    )
    parser.add_argument(
        "--active", action="store_true",
        help="measure only the points that the budget needs, and keep them in the file of "
        "--sensitivity, which need not exist",
    )  # fmt: skip
    parser.add_argument(
        "--workers", type=common.positive, metavar="N",
        help="processes that measure with --active (default 1)",
    )  # fmt: skip
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
        "--candidates", type=common.positive, metavar="N",
        help="cut and evaluate N different plans and write the best (default 3 with --repair, "
        "otherwise 1)",
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
    from slim_det.core.files import write_atomically
    from slim_det.planning.budget.candidates import candidates
    from slim_det.planning.budget.judge import best_of
    from slim_det.planning.budget.plan import checked_ratios
    from slim_det.planning.budget.targets import read_target
    from slim_det.planning.profile import read_any_table
    from slim_det.report.budget import Report, outputs

    target = read_target(args.loss, args.macs, args.params, args.latency, args.latency_ms)
    limits = _limits(args)
    _check_files(args, target.resource == "latency_ms")
    count = _count(args, target)
    _check_active(args, target)
    if args.criterion:
        check_criterion(args.criterion, "--criterion", FROM_IMAGES)
    table = read_any_table(args.table) if args.table else None
    losses = (_measured if args.active else _from_file)(args, target, limits, table)
    traced, search, source = losses.traced, losses.search, losses.source
    repair = LEAST_SQUARES if args.repair else None
    pruner = Pruner(source.criterion, pruned_ratios=0.5, align=limits.align, repair=repair)
    plans = [
        (candidate, checked_ratios(traced, candidate.solution, search.losses, pruner))
        for candidate in candidates(search, target, count)
    ]
    judged = [] if args.no_measure else _judged(losses, pruner, plans)
    best = best_of(judged) if judged else None
    candidate, ratios = (best.candidate, best.ratios) if best else plans[0]
    solution, active = candidate.solution, losses.active
    report = Report(
        target,
        solution,
        ratios,
        limits.align,
        source,
        best.measured_ap if best else None,
        repair,
        tuple(judged),
        active.coverage(solution.removed) if active else None,
    )
    write_atomically(outputs(report, args.output, args.png))
    common.save_json(args, report.as_dict())
    _print(report, traced)
    print(f"written to {args.output}; train with it: --slim_config {args.output}")
    return 0


@dataclass(frozen=True)
class _Losses:
    """The model, and what is known about its losses."""

    cfg: Any
    traced: TracedModel
    search: BudgetSearch
    source: Provenance
    active: ActiveMeasurement | None = None


def _from_file(
    args: argparse.Namespace, target: Target, limits: Limits, table: LatencyTable | None
) -> _Losses:
    from slim_det.planning.budget.prepare import make_search
    from slim_det.planning.sensitivity.result import read_result

    result = read_result(args.sensitivity)
    cfg, traced = _traced(args, result)
    search = make_search(traced, result, args.sensitivity, limits, table)
    return _Losses(cfg, traced, search, _provenance(args, result))


def _measured(
    args: argparse.Namespace, target: Target, limits: Limits, table: LatencyTable | None
) -> _Losses:
    from slim_det.compress.prune.importance import CRITERIA
    from slim_det.planning.budget.active_run import measure_for
    from slim_det.planning.sensitivity.result import read_result

    result = read_result(args.sensitivity) if os.path.exists(args.sensitivity) else None
    cfg, traced = _traced(args, result)
    criterion = args.criterion if args.criterion in CRITERIA else "l1_norm"
    workers = args.workers or 1
    active = measure_for(cfg, traced, args.sensitivity, target, limits, table, criterion, workers)
    return _Losses(cfg, traced, active.search, _provenance(args, active.result), active)


def _provenance(args: argparse.Namespace, result: SensitivityResult) -> Provenance:
    from slim_det.core.files import sha256_of
    from slim_det.report.budget import Provenance

    return Provenance(
        file=os.path.basename(args.sensitivity),
        sha256=sha256_of(args.sensitivity),
        metric=result.metric,
        baseline=result.baseline,
        criterion=args.criterion or result.criterion,
    )


def _count(args: argparse.Namespace, target: Target) -> int:
    """How many candidates to make."""
    from slim_det.core.errors import ConfigError
    from slim_det.planning.budget.candidates import MOST

    if args.candidates is None:
        several = args.repair and not args.no_measure and target.kind != "loss"
        return _CANDIDATES_WITH_REPAIR if several else 1
    if args.candidates > MOST:
        raise ConfigError(f"--candidates {args.candidates}: expected at most {MOST}")
    if args.candidates > 1 and args.no_measure:
        raise ConfigError("--candidates are judged by measuring them: leave --no_measure out")
    if args.candidates > 1 and target.kind == "loss":
        raise ConfigError(
            "--candidates cannot be combined with --loss, which allows one plan only; expected "
            "--macs, --params, --latency or --latency_ms"
        )
    return int(args.candidates)


def _check_active(args: argparse.Namespace, target: Target) -> None:
    from slim_det.core.errors import ConfigError

    if args.workers is not None and not args.active:
        raise ConfigError("--workers is read by --active only: add that, or leave it out")
    if not args.active:
        return
    if target.kind == "loss":
        raise ConfigError(
            "--active cannot be combined with --loss; expected --macs, --params, --latency or "
            "--latency_ms"
        )
    folder = os.path.dirname(os.path.abspath(args.sensitivity))
    if not args.sensitivity.endswith(".json") or not os.access(folder, os.W_OK):
        raise ConfigError(
            f"--sensitivity '{args.sensitivity}': expected a .json file in a writable folder"
        )


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


def _traced(args: argparse.Namespace, result: SensitivityResult | None) -> tuple[Any, TracedModel]:
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
    if args.no_measure and not args.active and result is not None:
        unpruned = traced(session.build_model(cfg))
        check_same_model(unpruned, result, args.sensitivity)
        names = losses_by_group(unpruned, result.groups, args.sensitivity)
        if uneven_groups(unpruned.groups).isdisjoint(names):
            return cfg, unpruned
    else:
        check_dataset(cfg, "EvalDataset")
        if result is not None:
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


def _judged(
    losses: _Losses, pruner: Pruner, plans: list[tuple[Candidate, dict[str, float]]]
) -> list[Judged]:
    """Measure every plan; with several, print a line as soon as one is done."""
    from slim_det.planning.budget.judge import judge
    from slim_det.report.budget import candidate_line
    from slim_det.training import session

    cfg, judged = losses.cfg, []

    def copy() -> Any:
        return session.model_with_weights(cfg, cfg.get("weights"))

    for one in judge(cfg, losses.traced, pruner, plans, copy):
        judged.append(one)
        if len(plans) > 1:
            print(candidate_line(one, losses.source), flush=True)
    return judged


def _print(report: Report, traced: TracedModel) -> None:
    from slim_det.report.budget import front_table, ratio_table

    common.print_table(ratio_table(report, traced.groups))
    common.print_table(front_table(report))
    print(report)
