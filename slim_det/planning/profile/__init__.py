"""Latency of convolutions: measured, kept in a table, summed to that of a model."""

from __future__ import annotations

from pathlib import Path

from slim_det.core.errors import LatencyError
from slim_det.planning.profile.paddleslim_table import read_paddleslim_table, to_latency_table
from slim_det.planning.profile.table import LatencyTable, read_table


def read_any_table(path: str | Path) -> LatencyTable:
    """Read a latency table, our JSON or the text of PaddleSlim.

    Raises:
        LatencyError: It is neither, or is damaged.
    """
    try:
        with open(path, encoding="utf-8") as stream:
            is_text = stream.readline().startswith("op_type")
    except (OSError, ValueError) as error:
        raise LatencyError(f"latency table '{path}' cannot be read: {error}") from error
    return to_latency_table(read_paddleslim_table(path)) if is_text else read_table(path)
