"""How a solution is reported: figures, the slim file, tables for people, a picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from slim_det.planning.budget.search import FrontRow, Solution
from slim_det.planning.budget.targets import UNITS, Target
from slim_det.version import __version__

if TYPE_CHECKING:
    from rich.table import Table

TARGET_TEXTS = {
    "loss": "loss of each layer at most {:.2%}",
    "macs": "{:.2%} of the MACs removed",
    "params": "{:.2%} of the parameters removed",
    "latency": "{:.2%} of the latency removed",
    "latency_ms": "at most {:g} ms an image",
}
AXIS_TEXTS = {"macs": "MACs of one image", "params": "parameters", "latency_ms": "latency, ms"}


@dataclass(frozen=True)
class Provenance:
    """Where the losses came from.

    Attributes:
        file: Name of the sensitivity file, without its folder.
        sha256: Of its content.
        metric: Name of the metric.
        baseline: Metric of the unpruned model, 0 to 1; None where it is not known.
        criterion: Which channels were cut.
    """

    file: str
    sha256: str
    metric: str
    baseline: float | None
    criterion: str

    def predicted(self, retained: float) -> float | None:
        """The metric that is predicted where a share of it is left."""
        return None if self.baseline is None else self.baseline * retained


@dataclass(frozen=True)
class Report:
    """A solution and everything that is reported about it.

    Attributes:
        target: What was asked for.
        solution: What was found.
        ratios: Group -> ratio that the pruner is given; groups that are not pruned are absent.
        align: Alignment that it is given.
        provenance: Where the losses came from.
        measured_ap: Metric of the pruned model, 0 to 1; None where it was not measured.
    """

    target: Target
    solution: Solution
    ratios: dict[str, float]
    align: int
    provenance: Provenance
    measured_ap: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """The figures under their JSON keys; counts as integers."""
        solution, source = self.solution, self.provenance
        figures: dict[str, Any] = {
            "target": {"kind": self.target.kind, "value": self.target.value},
            "metric": source.metric,
            "baseline_ap": source.baseline,
            "ratios": self.ratios,
            "align": self.align,
            "criterion": source.criterion,
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
        return {**figures, "method": solution.method}

    def slim_file(self) -> str:
        """The slim file that `train --slim_config` takes, provenance in its comments."""
        source, solution = self.provenance, self.solution
        settings: dict[str, Any] = {"criterion": source.criterion, "pruned_ratios": self.ratios}
        if self.align > 1:
            settings["align"] = self.align
        comments = [
            f"Made by slim-det ratios {__version__}: {self.target_text}.",
            f"sensitivity: {source.file}, sha256 {source.sha256}",
            f"metric: {source.metric}, baseline {_metric(source.baseline)}",
            f"predicted: {_metric(source.predicted(solution.retained))} "
            f"({1.0 - solution.retained:.2%} lost), before any fine-tuning",
            f"measured: {_metric(self.measured_ap, 'not measured')}",
            *self.cost_lines,
        ]
        head = "".join(f"# {' '.join(line.split())}\n" for line in comments)
        body = yaml.safe_dump({"Pruner": settings}, sort_keys=False, allow_unicode=True)
        return f"{head}slim: Pruner\n\n{body}"

    @property
    def target_text(self) -> str:
        """What was asked for, in a phrase."""
        return TARGET_TEXTS[self.target.kind].format(self.target.value)

    @property
    def cost_lines(self) -> list[str]:
        """One line a resource: before, after, change."""
        lines = []
        for name, before in self.solution.before.items():
            after = self.solution.after[name]
            digits = 3 if name == "latency_ms" else 0
            change = f" ({after / before - 1.0:+.2%})" if before else ""
            label = "latency, ms" if name == "latency_ms" else UNITS[name]
            lines.append(f"{label}: {before:.{digits}f} -> {after:.{digits}f}{change}")
        return lines

    def __str__(self) -> str:
        """Costs, prediction and measurement for people."""
        source, retained = self.provenance, self.solution.retained
        measured = _metric(self.measured_ap, "not measured")
        lines = [
            *self.cost_lines,
            f"{source.metric}, before any fine-tuning: baseline {_metric(source.baseline)}, "
            f"predicted {_metric(source.predicted(retained))} ({1.0 - retained:.2%} lost), "
            f"measured: {measured}",
            f"solved by {self.solution.method}",
        ]
        return "\n".join(lines)


def ratio_table(report: Report, kept: dict[str, tuple[int, int]]) -> Table:
    """The ratio of every group.

    Args:
        report: The report.
        kept: Group name -> channels before and after.
    """
    from rich.table import Table

    table = Table("group", "ratio", "channels", "kept", box=None)
    for name, (before, after) in kept.items():
        ratio = report.ratios.get(name)
        table.add_row(name, "" if ratio is None else f"{ratio:.4g}", str(before), str(after))
    return table


def front_table(report: Report) -> Table:
    """About a dozen budgets, each with the best that is predicted within it."""
    from rich.table import Table

    resource, source = report.solution.resource, report.provenance
    digits = 3 if resource == "latency_ms" else 0
    title = f"predicted {source.metric}"
    table = Table(f"{UNITS[resource]} left", "removed", title, "lost", box=None)
    for row in report.solution.rows:
        table.add_row(
            f"{row.cost:.{digits}f}",
            f"{row.removed:.1%}",
            _metric(source.predicted(row.retained)),
            f"{1.0 - row.retained:.1%}",
        )
    return table


def plot_front(report: Report) -> Callable[[str], None]:
    """A picture of the front with the chosen plan; returns a function that writes it to a path."""
    solution, source = report.solution, report.provenance
    scale = 1.0 if source.baseline is None else source.baseline
    label = "share of the metric" if source.baseline is None else source.metric

    def draw(path: str) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 5), layout="constrained")
        axes = figure.add_subplot()
        front = sorted(solution.front, key=_cost)
        axes.step(
            [row.cost for row in front],
            [row.retained * scale for row in front],
            where="post",
            marker="." if len(front) <= len(solution.rows) else "",
            label="best that is predicted",
        )
        after = solution.after[solution.resource]
        axes.plot(after, solution.retained * scale, "o", label=f"plan: {report.target_text}")
        if report.measured_ap is not None:
            axes.plot(after, report.measured_ap, "x", label="measured")
        before = solution.before[solution.resource]
        axes.plot(before, scale, "s", label="unpruned")
        axes.set_xlabel(AXIS_TEXTS[solution.resource])
        axes.set_ylabel(f"{label}, before fine-tuning")
        axes.set_ylim(bottom=0.0)
        axes.set_title(f"{source.file}: what a budget costs")
        axes.grid(alpha=0.3)
        axes.legend()
        FigureCanvasAgg(figure).print_png(path)

    return draw


def outputs(report: Report, output: str, png: str | None) -> dict[Path, Callable[[str], None]]:
    """What to write where, for `slim_det.core.files.write_atomically`."""

    def write_slim_file(path: str) -> None:
        Path(path).write_text(report.slim_file(), encoding="utf-8")

    files: dict[Path, Callable[[str], None]] = {Path(output): write_slim_file}
    if png:
        files[Path(png)] = plot_front(report)
    return files


def _cost(row: FrontRow) -> float:
    return row.cost


def _plain(name: str, value: float | None) -> float | int | None:
    return int(round(value)) if value is not None and name != "latency_ms" else value


def _metric(value: float | None, unknown: str = "unknown") -> str:
    return unknown if value is None else f"{value:.4f}"
