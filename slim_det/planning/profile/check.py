"""How well the sum of convolutions predicts the latency of complete models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from slim_det.deploy.latency import compare_latency
from slim_det.planning.profile.shapes import ConvShape
from slim_det.planning.profile.table import LatencyTable

MAX_ERROR = 0.15


@dataclass(frozen=True)
class CheckRow:
    """Prediction and measurement of one model.

    Attributes:
        name: How it was pruned.
        convs_ms: Sum of its convolutions in the table.
        predicted_ms: That sum and the table's ``other_ms``.
        measured_ms: Median latency from image to boxes.
        p10_ms: 10th percentile of the runs.
        p90_ms: 90th percentile of the runs.
        error: ``predicted_ms / measured_ms - 1``.
    """

    name: str
    convs_ms: float
    predicted_ms: float
    measured_ms: float
    p10_ms: float
    p90_ms: float
    error: float

    @property
    def passed(self) -> bool:
        """Whether the prediction is within `MAX_ERROR`."""
        return abs(self.error) <= MAX_ERROR

    def as_dict(self) -> dict[str, Any]:
        """The figures under their JSON keys."""
        return {**asdict(self), "passed": self.passed}


def compare(
    table: LatencyTable,
    models: Mapping[str, tuple[Path, list[ConvShape]]],
    runs: int = 50,
) -> list[CheckRow]:
    """Predict exported models and measure them by turns in one process.

    Args:
        table: Of the unpruned model.
        models: Name -> (exported folder, its convolutions, each as often as it is run).
        runs: Number of timed rounds.

    Raises:
        LatencyError: The table does not cover a convolution; nothing is measured then.
    """
    convs = {name: sum(map(table.latency_ms, shapes)) for name, (_, shapes) in models.items()}
    folders = [folder for folder, _ in models.values()]
    measured = compare_latency(folders, runs, table.origin.threads)
    rows = []
    for (name, convs_ms), found in zip(convs.items(), measured):
        predicted_ms = convs_ms + (table.other_ms or 0.0)
        error = predicted_ms / found.latency_ms - 1
        times = (found.latency_ms, found.p10_ms, found.p90_ms)
        rows.append(CheckRow(name, convs_ms, predicted_ms, *times, error))
    return rows
