"""The grid of a sensitivity analysis: its ratios, their keys in a file, and its shards."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from decimal import Decimal, InvalidOperation

import numpy as np

from slim_det.core.errors import ConfigError

MAX_RATIOS = 1000
MAX_SHARDS = 1000


def read_ratios(text: str) -> list[float]:
    """Read the ratios to measure.

    Args:
        text: Numbers and ranges ``start:end:step`` (the end is included if a step reaches it),
            separated by commas or spaces: ``0.1:0.9:0.1``, ``0.1,0.25 0.5``.

    Returns:
        Shares of channels to remove in ascending order, each strictly between 0 and 1. They
        are computed as decimals: 0.3, not 0.30000000000000004.

    Raises:
        ConfigError: An entry is not a number or range, is not between 0 and 1, or is given twice.
    """
    entries = [entry for entry in re.split(r"[\s,]+", text) if entry]
    if not entries:
        raise ConfigError("ratios: none are given; expected for example 0.1:0.9:0.1 or 0.1,0.3,0.5")
    ratios: dict[float, str] = {}
    for entry in entries:
        for ratio in map(float, _read_entry(entry)):
            if ratio in ratios:
                both = entry if ratios[ratio] == entry else f"{ratios[ratio]} and {entry}"
                raise ConfigError(f"ratios: {key_of(ratio)} is given twice, by {both}")
            if len(ratios) == MAX_RATIOS:
                raise ConfigError(f"ratios: '{entry}' makes more than {MAX_RATIOS} ratios")
            ratios[ratio] = entry
    return sorted(ratios)


def key_of(ratio: float) -> str:
    """The JSON key of a ratio: the shortest decimal text that reads as the same number."""
    return np.format_float_positional(float(ratio), trim="-")


def split(costs: Sequence[float], parts: int) -> list[range]:
    """Split a list of candidates into contiguous parts of about equal cost.

    Each border is put where the cost before it is nearest to its share of the total, so no part
    costs more than the mean of all parts plus the most expensive candidate.

    Args:
        costs: Cost of each candidate, in any unit, 0 or more. All 0 counts as all equal.
        parts: Number of parts, 1 or more.

    Returns:
        ``parts`` ranges of indices, in order. Some are empty only if there are fewer candidates
        than parts.

    Raises:
        ValueError: There is no part, or a cost is negative or not finite.
    """
    if parts < 1 or any(not 0 <= cost < math.inf for cost in costs):
        raise ValueError(f"cannot split costs {list(costs)} into {parts} parts")
    count = len(costs)
    before = np.concatenate([[0.0], np.cumsum(costs if any(costs) else [1.0] * count)])
    cuts = [0]
    for part in range(1, parts):
        nearest = int(np.argmin(np.abs(before - before[-1] * part / parts)))
        latest = count - (parts - part)  # one candidate is left for each later part
        cuts.append(min(count, max(cuts[-1] + 1, min(nearest, latest))))
    return [range(start, end) for start, end in zip(cuts, [*cuts[1:], count])]


def read_shard(text: str) -> tuple[int, int]:
    """Read ``i/n``, the i-th of n parts of the work.

    Returns:
        The part, counted from 0 (it is counted from 1 in the text), and the number of parts.

    Raises:
        ConfigError: The form is wrong, or i is not between 1 and n.
    """
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text.strip())
    if not match:
        raise ConfigError(f"shard '{text}' is not of the form i/n; expected for example 2/4")
    part, parts = map(int, match.groups())
    if not 1 <= parts <= MAX_SHARDS:
        raise ConfigError(f"shard '{text}': expected 1 to {MAX_SHARDS} parts")
    if not 1 <= part <= parts:
        raise ConfigError(f"shard '{text}': parts are counted from 1/{parts} to {parts}/{parts}")
    return part - 1, parts


def _read_entry(entry: str) -> Iterator[Decimal]:
    """The ratios of one number or range."""
    numbers = [_read_number(part, entry) for part in entry.split(":")]
    if len(numbers) not in (1, 3):
        raise ConfigError(f"ratios: '{entry}' is not start:end:step; expected as in 0.1:0.9:0.1")
    for ratio in numbers[:2]:
        if not 0 < float(ratio) < 1:
            hint = f"; write {ratio / 100:f} for {ratio:f} %" if 1 <= ratio < 100 else ""
            raise ConfigError(f"ratios: '{entry}' is not strictly between 0 and 1{hint}")
    if len(numbers) == 1:
        yield numbers[0]
        return
    start, end, step = numbers
    if step <= 0:
        raise ConfigError(f"ratios: the step of '{entry}' is not above 0")
    if start > end:
        raise ConfigError(f"ratios: '{entry}' starts above its end")
    if step * MAX_RATIOS < end - start:
        raise ConfigError(f"ratios: '{entry}' makes more than {MAX_RATIOS} ratios")
    for index in range(int((end - start) / step) + 1):
        yield start + index * step


def _read_number(text: str, entry: str) -> Decimal:
    try:
        number = Decimal(text)
    except InvalidOperation:
        number = Decimal("nan")
    if not number.is_finite():
        raise ConfigError(f"ratios: '{entry}' is not a number; expected as in 0.1 or 0.1:0.9:0.1")
    return number
