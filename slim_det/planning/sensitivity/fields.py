"""Checked entries of a sensitivity file: each error names the key, what is there, what fits."""

from __future__ import annotations

import math
from typing import Any

from slim_det.core.errors import SensitivityError

Points = dict[str, dict[float, float]]
"""Group name -> {ratio: value}."""

REQUIRED = object()
"""Default of an entry that must be there; any other default also stands for ``null``."""


def read_text(data: dict[str, Any], key: str, default: Any = REQUIRED) -> Any:
    """A text that is not empty.

    Raises:
        SensitivityError: It is missing, empty or no text.
    """
    value = _entry(data, key, default)
    if value is not default and (not isinstance(value, str) or not value):
        raise _wrong(key, value, "text")
    return value


def read_number(
    data: dict[str, Any], key: str, low: float, high: float, default: Any = REQUIRED
) -> Any:
    """A finite number between ``low`` and ``high``, both allowed, as a float.

    Raises:
        SensitivityError: It is missing or does not fit.
    """
    value = _entry(data, key, default)
    return value if value is default else _number(value, key, low, high)


def read_count(data: dict[str, Any], key: str, low: int, default: Any = REQUIRED) -> Any:
    """An integer of at least ``low``.

    Raises:
        SensitivityError: It is missing or does not fit.
    """
    value = _entry(data, key, default)
    if value is not default and (type(value) is not int or value < low):
        raise _wrong(key, value, f"an integer of {low} or more")
    return value


def read_list(data: dict[str, Any], key: str, default: Any = REQUIRED) -> Any:
    """A list without repeated entries, as a tuple; what it holds is not looked at.

    Raises:
        SensitivityError: It is missing, no list, or holds an entry twice.
    """
    value = _entry(data, key, default)
    if value is default:
        return value
    if not isinstance(value, list):
        raise _wrong(key, value, "a list")
    for index, entry in enumerate(value):
        if entry in value[:index]:
            raise SensitivityError(f"{key}: {entry!r} comes twice")
    return tuple(value)


def read_mapping(data: dict[str, Any], key: str, default: Any = REQUIRED) -> Any:
    """A mapping; what it holds is not looked at.

    Raises:
        SensitivityError: It is missing or no mapping.
    """
    value = _entry(data, key, default)
    if value is not default and not isinstance(value, dict):
        raise _wrong(key, value, "a mapping")
    return value


def read_points(
    data: dict[str, Any], key: str, low: float, high: float, default: Any = REQUIRED
) -> Any:
    """A table of values by group and ratio; ``{"0.1": x}`` becomes ``{0.1: x}``.

    Raises:
        SensitivityError: It is missing, a ratio is not between 0 and 1 or comes twice, or a
            value is not between ``low`` and ``high``.
    """
    tables = read_mapping(data, key, default)
    if tables is default:
        return tables
    points: Points = {}
    for name in tables:
        row = points[name] = {}
        for text, value in read_mapping(tables, name).items():
            ratio = read_ratio(text, f"{key}.{name}")
            if ratio in row:
                raise SensitivityError(f"{key}.{name}: ratio {text} comes twice")
            row[ratio] = _number(value, f"{key}.{name}.{text}", low, high)
    return points


def read_ratio(value: Any, where: str) -> float:
    """A ratio, written as a number or as text, strictly between 0 and 1.

    Raises:
        SensitivityError: It is something else; ``where`` is named.
    """
    try:
        ratio = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        ratio = math.nan
    if not 0 < ratio < 1:
        raise _wrong(where, value, "a ratio strictly between 0 and 1")
    return ratio


def _entry(data: dict[str, Any], key: str, default: Any) -> Any:
    value = data.get(key)
    if default is not REQUIRED:
        return default if value is None else value
    if key not in data:
        raise SensitivityError(f"'{key}' is missing")
    return value


def _number(value: Any, where: str, low: float, high: float) -> float:
    try:
        number = float(value) if type(value) in (int, float) else math.nan
    except OverflowError:
        number = math.nan
    if not (low <= number <= high and math.isfinite(number)):
        span = f" from {low:g}" * (low > -math.inf) + f" up to {high:g}" * (high < math.inf)
        raise _wrong(where, value, f"a finite number{span}")
    return number


def _wrong(where: str, value: Any, expected: str) -> SensitivityError:
    shown = repr(value)
    shown = shown if len(shown) <= 40 else f"{shown[:37]}..."
    return SensitivityError(f"{where}: {shown} does not fit; expected {expected}")
