"""Sensitivity results made by hand."""

from __future__ import annotations

from slim_det.planning.sensitivity.result import Conditions, Request, SensitivityResult, Sources


def result_of(
    losses: dict[str, dict[float, float]],
    fingerprint: str | None = None,
    metric: str = "coco_ap",
    baseline: float | None = 0.4,
) -> SensitivityResult:
    """A complete result that holds these losses."""
    ratios = tuple(sorted({ratio for own in losses.values() for ratio in own}))
    return SensitivityResult(
        conditions=Conditions(metric, baseline, 6, "l1_norm"),
        sources=Sources(fingerprint),
        request=Request(tuple(losses), ratios),
        groups=losses,
        ap={},
    )
