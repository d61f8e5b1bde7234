"""Merges the parts of one sensitivity analysis, whichever machines measured them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from graphlib import CycleError, TopologicalSorter
from typing import Any

from slim_det.core.errors import SensitivityError
from slim_det.planning.sensitivity.fields import Points
from slim_det.planning.sensitivity.grid import key_of, read_shard
from slim_det.planning.sensitivity.result import Bands, Request, SensitivityResult

TOLERANCE = 1e-9
"""Largest difference, from rounding, between two measurements of one AP or loss."""


def merge_results(
    results: Sequence[SensitivityResult], names: Sequence[str] = ()
) -> SensitivityResult:
    """Merge results of the same model, weights, data and settings into one, in any order.

    The requested groups and ratios are united. A point that is in several results must be the same
    in all. If points are still missing, the merged result is incomplete and names its shards.

    Args:
        results: One or more.
        names: The file of each result, for errors.

    Returns:
        The result that one run would have given, with the sum of the seconds.

    Raises:
        SensitivityError: There is nothing to merge, or two results contradict each other; the
            error names the entry and both files.
        ValueError: There are names, but not one for each result.
    """
    if not results:
        raise SensitivityError("there is no sensitivity file to merge; expected one or more")
    labels = [str(n) for n in names] or [f"result {i}" for i in range(1, len(results) + 1)]
    if len(labels) != len(results):
        raise ValueError(f"{len(labels)} names for {len(results)} results")
    _require_same(labels, [_subject(result) for result in results])
    measured = [(n, result) for n, result in zip(labels, results) if result.groups or result.bands]
    _require_same([n for n, _ in measured], [_drawing(result) for _, result in measured])
    baseline = _agreed("baseline", [(n, r.baseline) for n, r in zip(labels, results)])
    order = _united_order(results)
    request = Request(
        group_order=order,
        ratios=tuple(sorted({ratio for r in results for ratio in r.request.ratios})),
        channels=_united_channels(labels, results, order),
        shard=_united_shards(results),
    )
    merged = SensitivityResult(
        conditions=replace(results[0].conditions, baseline=baseline),
        sources=results[0].sources,
        request=request,
        groups=_united("groups", labels, [r.groups for r in results]),
        ap=_united("ap", labels, [r.ap for r in results]),
        seconds=math.fsum(r.seconds for r in results),
        bands=_united_bands(labels, [r.bands for r in results]),
    )
    return replace(merged, request=replace(request, shard=None)) if merged.complete else merged


def _require_same(labels: list[str], subjects: list[dict[str, Any]]) -> None:
    """Refuse results of another model, weights, data or settings."""
    for label, subject in zip(labels[1:], subjects[1:]):
        for key, value in subject.items():
            if value != subjects[0][key]:
                raise SensitivityError(
                    f"'{label}' and '{labels[0]}' cannot be merged: {key} is {value!r} in the "
                    f"first and {subjects[0][key]!r} in the second; expected results of one model, "
                    "measured on the same data with the same settings"
                )


def _subject(result: SensitivityResult) -> dict[str, Any]:
    """What must be equal in all results; the baseline may differ by rounding."""
    baseline = "unknown" if result.baseline is None else "known"
    return {**asdict(result.conditions), **asdict(result.sources), "baseline": baseline}


def _drawing(result: SensitivityResult) -> dict[str, Any]:
    """How the bands were drawn, which must be equal in all results that have points."""
    bands = result.bands
    return {"bootstrap": bands and {"samples": bands.samples, "seed": bands.seed}}


def _agreed(where: str, values: list[tuple[str, Any]]) -> Any:
    """The smallest of values that must be equal within rounding; None if none is known."""
    if values[0][1] is None:
        return None
    (low_name, low), (high_name, high) = (f(values, key=lambda v: v[1]) for f in (min, max))
    if high - low > TOLERANCE:
        raise SensitivityError(
            f"'{low_name}' and '{high_name}' cannot be merged: {where} is {low:.10g} in the first "
            f"and {high:.10g} in the second; expected the same value"
        )
    return low


def _united(key: str, labels: list[str], tables: Sequence[Points]) -> Points:
    """All points of all tables."""
    found: dict[str, dict[float, list[tuple[str, float]]]] = {}
    for label, table in zip(labels, tables):
        for name, row in table.items():
            for ratio, value in row.items():
                found.setdefault(name, {}).setdefault(ratio, []).append((label, value))
    return {
        name: {ratio: _agreed(f"{key}.{name}.{key_of(ratio)}", v) for ratio, v in row.items()}
        for name, row in found.items()
    }


def _united_order(results: Sequence[SensitivityResult]) -> tuple[str, ...]:
    """An order that agrees with that of every result; by name where they leave it open."""
    graph: TopologicalSorter[str] = TopologicalSorter()
    for result in results:
        order = result.request.group_order
        for name in order:
            graph.add(name)
        for earlier, later in zip(order, order[1:]):
            graph.add(later, earlier)
    united: list[str] = []
    try:
        graph.prepare()
    except CycleError as error:
        raise SensitivityError(
            f"group_order: the results order '{error.args[1][0]}' and '{error.args[1][1]}' "
            "differently; expected results of one model"
        ) from None
    while graph.is_active():
        ready = sorted(graph.get_ready())
        united += ready
        graph.done(*ready)
    return tuple(united)


def _united_channels(
    labels: list[str], results: Sequence[SensitivityResult], order: tuple[str, ...]
) -> dict[str, int]:
    """Channels of every group that any result knows."""
    united = {}
    for name in order:
        known = [(n, r.request.channels.get(name)) for n, r in zip(labels, results)]
        known = [(label, channels) for label, channels in known if channels is not None]
        if known:
            united[name] = _agreed(f"channels.{name}", known)
    return united


def _united_shards(results: Sequence[SensitivityResult]) -> str | None:
    """The shards that were merged, as in ``1/4+3/4``; None if one result is not a shard."""
    shards = [r.request.shard for r in results]
    parts = {part for shard in shards for part in (shard or "").split("+") if part}
    if None in shards:
        return None
    return "+".join(sorted(parts, key=lambda part: (read_shard(part)[1], read_shard(part)[0])))


def _united_bands(labels: list[str], bands: Sequence[Bands | None]) -> Bands | None:
    """The bands of all points; samples and seed are known to be equal."""
    known = [(label, band) for label, band in zip(labels, bands) if band is not None]
    if not known:
        return None
    names = [label for label, _ in known]
    return replace(
        known[0][1],
        low=_united("bootstrap.low", names, [band.low for _, band in known]),
        high=_united("bootstrap.high", names, [band.high for _, band in known]),
    )
