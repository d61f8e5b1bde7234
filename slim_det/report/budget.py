"""Reports the pruning ratios found for a budget: JSON, slim file, tables and a plot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from slim_det.compress.prune.groups import ModelGroups
from slim_det.planning.budget.active import Coverage
from slim_det.planning.budget.judge import Judged
from slim_det.planning.budget.search import Solution
from slim_det.planning.budget.targets import UNITS, Target
from slim_det.report.tables import text_table
from slim_det.version import __version__

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

TARGET_TEXTS = {
    "loss": "loss of each layer at most {:.2%}",
    "macs": "{:.2%} of the MACs removed",
    "params": "{:.2%} of the parameters removed",
    "latency": "{:.2%} of the latency removed",
    "latency_ms": "at most {:g} ms per image",
}
LABELS = {"macs": "MACs", "params": "parameters", "latency_ms": "latency, ms"}
DIGITS = {"macs": 0, "params": 0, "latency_ms": 3}


@dataclass(frozen=True)
class Provenance:
    """The sensitivity file that the losses were read from.

    Attributes:
        file: Name of the file, without its folder.
        sha256: Digest of its content.
        metric: Name of the metric.
        baseline: Metric of the unpruned model, 0 to 1; None if unknown.
        criterion: Name of the criterion that channels were chosen by.
    """

    file: str
    sha256: str
    metric: str
    baseline: float | None
    criterion: str

    def predicted(self, retained: float) -> float | None:
        """The predicted metric if this share of it remains; None without a baseline."""
        return None if self.baseline is None else self.baseline * retained


@dataclass(frozen=True)
class Report:
    """A solution and everything that is reported about it.

    Attributes:
        target: The budget.
        solution: The best plan within it.
        ratios: Group -> pruning ratio; groups that are not pruned are absent.
        align: Alignment of the pruner.
        provenance: Where the losses came from.
        measured_ap: Metric of the pruned model, 0 to 1; None if not measured.
        repair: How its layers are repaired after the cut; None if they are not.
        candidates: All plans that were judged, of which this is the best.
        coverage: How much was measured for this budget; None without an active measurement.
    """

    target: Target
    solution: Solution
    ratios: dict[str, float]
    align: int
    provenance: Provenance
    measured_ap: float | None = None
    repair: str | None = None
    candidates: tuple[Judged, ...] = ()
    coverage: Coverage | None = None

    def as_dict(self) -> dict[str, Any]:
        """The report with its JSON keys; counts are integers."""
        solution, source = self.solution, self.provenance
        figures: dict[str, Any] = {
            "target": {"kind": self.target.kind, "value": self.target.value},
            "metric": source.metric,
            "baseline_ap": source.baseline,
            "ratios": self.ratios,
            "align": self.align,
            "criterion": source.criterion,
            "repair": self.repair,
            "predicted_ap": source.predicted(solution.retained),
            "predicted_loss": 1.0 - solution.retained,
            "measured_ap": self.measured_ap,
        }
        for name in ("macs", "params", "latency_ms"):
            for when, costs in (("before", solution.before), ("after", solution.after)):
                figures[f"{name}_{when}"] = _plain(name, costs.get(name))
        figures["front"] = [
            {
                solution.resource: _plain(solution.resource, row.cost),
                "removed": row.removed,
                "predicted_ap": source.predicted(row.retained),
                "predicted_loss": 1.0 - row.retained,
            }
            for row in solution.rows
        ]
        figures["candidates"] = [self._candidate(one) for one in self.candidates]
        figures["points"] = self.coverage and {
            "measured": self.coverage.measured,
            "of": self.coverage.points,
            "retained_low": self.coverage.low,
            "retained_high": self.coverage.high,
        }
        return {**figures, "method": solution.method}

    def _candidate(self, judged: Judged) -> dict[str, Any]:
        solution = judged.candidate.solution
        return {
            "name": judged.candidate.name,
            "ratios": judged.ratios,
            "predicted_ap": self.provenance.predicted(solution.retained),
            "predicted_loss": 1.0 - solution.retained,
            "measured_ap": judged.measured_ap,
            **{f"{name}_after": _plain(name, cost) for name, cost in solution.after.items()},
        }

    def slim_file(self) -> str:
        """The slim file for `train --slim_config`; comments say where the ratios come from."""
        source, solution = self.provenance, self.solution
        settings: dict[str, Any] = {"criterion": source.criterion, "pruned_ratios": self.ratios}
        if self.align > 1:
            settings["align"] = self.align
        if self.repair:
            settings["repair"] = self.repair
        comments = [
            f"Made by slim-det ratios {__version__}: {self.target_text}.",
            f"sensitivity: {source.file}, sha256 {source.sha256}",
            f"metric: {source.metric}, baseline {_metric(source.baseline)}",
            f"predicted: {_metric(source.predicted(solution.retained))} "
            f"({1.0 - solution.retained:.2%} lost), before any fine-tuning",
            f"measured: {self._measured}",
            *self._candidate_lines,
            *self._coverage_lines,
            *self.cost_lines,
        ]
        head = "".join(f"# {' '.join(line.split())}\n" for line in comments)
        body = yaml.safe_dump({"Pruner": settings}, sort_keys=False, allow_unicode=True)
        return f"{head}slim: Pruner\n\n{body}"

    @property
    def target_text(self) -> str:
        """The target in a phrase."""
        return TARGET_TEXTS[self.target.kind].format(self.target.value)

    @property
    def _measured(self) -> str:
        repaired = ", after repair" if self.repair and self.measured_ap is not None else ""
        return f"{_metric(self.measured_ap, 'not measured')}{repaired}"

    @property
    def _candidate_lines(self) -> list[str]:
        """How the plan was chosen, if there was a choice."""
        if len(self.candidates) < 2:
            return []
        after = "repair" if self.repair else "the cut"
        figures = (f"{one.candidate.name} {_metric(one.measured_ap)}" for one in self.candidates)
        return [
            f"best of {len(self.candidates)} candidates, judged after {after} on EvalDataset: "
            + ", ".join(figures)
        ]

    @property
    def _coverage_lines(self) -> list[str]:
        """How much was measured, and what the rest could change."""
        if self.coverage is None:
            return []
        low, high = (self._share(x) for x in (self.coverage.low, self.coverage.high))
        return [
            f"measured {self.coverage.measured} of {self.coverage.points} points; if losses do not "
            f"fall with the ratio, all points predict at least {low} for this plan and at most "
            f"{high} for the best one"
        ]

    def _share(self, retained: float) -> str:
        """A share of the metric as the metric, or in percent if there is no baseline."""
        predicted = self.provenance.predicted(retained)
        return f"{retained:.2%}" if predicted is None else _metric(predicted)

    @property
    def cost_lines(self) -> list[str]:
        """One line per resource: before, after, change."""
        lines = []
        for name, before in self.solution.before.items():
            after, digits = self.solution.after[name], DIGITS[name]
            change = f" ({after / before - 1.0:+.2%})" if before else ""
            lines.append(f"{LABELS[name]}: {before:.{digits}f} -> {after:.{digits}f}{change}")
        return lines

    def __str__(self) -> str:
        """Costs, predicted metric and measured metric for the terminal."""
        source, retained = self.provenance, self.solution.retained
        lines = [
            *self.cost_lines,
            f"{source.metric}, before any fine-tuning: baseline {_metric(source.baseline)}, "
            f"predicted {_metric(source.predicted(retained))} ({1.0 - retained:.2%} lost), "
            f"measured: {self._measured}",
            f"solved by {self.solution.method}",
            *self._candidate_lines,
            *self._coverage_lines,
        ]
        return "\n".join(lines)


def candidate_line(judged: Judged, source: Provenance) -> str:
    """A candidate with its predicted and its measured metric."""
    candidate = judged.candidate
    predicted = _metric(source.predicted(candidate.solution.retained))
    return (
        f"candidate {candidate.name}: {source.metric} predicted {predicted}, "
        f"measured {_metric(judged.measured_ap)}"
    )


def ratio_table(report: Report, groups: ModelGroups) -> Table:
    """Ratio and channels of every group that may be pruned."""
    rows = []
    for name, removed in report.solution.removed.items():
        group, ratio = groups.groups[name], report.ratios.get(name)
        kept = group.channels_kept(removed)
        rows.append((name, f"{ratio:.4g}" if ratio else "", str(group.channels), str(kept)))
    return text_table(("group", "ratio", "channels", "kept"), rows)


def front_table(report: Report) -> Table:
    """About a dozen budgets, each with the best predicted metric within it."""
    resource, source = report.solution.resource, report.provenance
    columns = (f"{UNITS[resource]} left", "removed", f"predicted {source.metric}", "lost")
    rows = [
        (
            f"{row.cost:.{DIGITS[resource]}f}",
            f"{row.removed:.1%}",
            _metric(source.predicted(row.retained)),
            f"{1.0 - row.retained:.1%}",
        )
        for row in report.solution.rows
    ]
    return text_table(columns, rows)


def plot_front(report: Report) -> Figure:
    """Plot the predicted metric over the budget, and the chosen plan."""
    from matplotlib.figure import Figure

    solution, source = report.solution, report.provenance
    scale = 1.0 if source.baseline is None else source.baseline
    label = "share of the metric" if source.baseline is None else source.metric
    before, after = (costs[solution.resource] for costs in (solution.before, solution.after))
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    axes.step(
        [row.cost for row in solution.front],
        [row.retained * scale for row in solution.front],
        where="post",
        marker="." if len(solution.front) <= len(solution.rows) else "",
        label="best predicted",
    )
    axes.plot(after, solution.retained * scale, "o", label=f"plan: {report.target_text}")
    if report.measured_ap is not None:
        axes.plot(after, report.measured_ap, "x", label="measured")
    axes.plot(before, scale, "s", label="unpruned")
    axes.set_xlabel(LABELS[solution.resource])
    axes.set_ylabel(f"{label}, before fine-tuning")
    axes.set_ylim(bottom=0.0)
    axes.set_title(f"{source.file}: predicted metric for each budget")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def outputs(report: Report, output: str, png: str | None) -> dict[Path, Callable[[str], None]]:
    """Functions that write the slim file and the plot, for `write_atomically`."""

    def write_slim_file(path: str) -> None:
        Path(path).write_text(report.slim_file(), encoding="utf-8")

    files: dict[Path, Callable[[str], None]] = {Path(output): write_slim_file}
    if png:
        figure = plot_front(report)
        files[Path(png)] = lambda path: figure.savefig(path, format="png")
    return files


def _plain(name: str, value: float | None) -> float | int | None:
    return value if value is None or name == "latency_ms" else round(value)


def _metric(value: float | None, unknown: str = "unknown") -> str:
    return unknown if value is None else f"{value:.4f}"
