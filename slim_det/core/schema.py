"""Checks what a file or a user says against a dataclass; a mistake is one line of ours.

The dataclass says in pydantic's annotations what is valid. The description of a field is what a
message says after "expected".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from slim_det.core.errors import ConfigError, SlimDetError, nearest

T = TypeVar("T")


def check_keys(
    values: Any, known: Any, where: str, error: type[SlimDetError] = ConfigError
) -> None:
    """Make sure that something is a mapping of known keys.

    Raises:
        SlimDetError: Of type ``error``: it is no mapping, or a key is unknown.
    """
    if not isinstance(values, Mapping):
        raise error(f"{where}: expected a mapping of keys, found {values!r}")
    for key in values:
        if key not in known:
            raise error(f"{where}: unknown key '{key}'{nearest(str(key), sorted(known))}")


def whole_number(name: str, value: Any, least: int) -> int:
    """Check a setting that counts something.

    Raises:
        ConfigError: It is not an integer, or below ``least``.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name}: {value!r} is not valid; expected a whole number >= {least}")
    return value


def validated(
    kind: type[T],
    values: Mapping[str, Any],
    where: str,
    error: type[SlimDetError] = ConfigError,
    spelled: Mapping[str, str] | None = None,
) -> T:
    """Make a dataclass of what was read, if every value fits.

    Args:
        kind: The dataclass.
        values: Field -> value; other keys are passed over (see `check_keys`).
        where: What stands before a field in messages, with its separator: ``QAT.quant_config.``.
        error: What to raise.
        spelled: Field -> its name in messages, where that is another.

    Raises:
        SlimDetError: Of type ``error``, for the first field that is missing or does not fit.
    """
    adapter = TypeAdapter(kind)
    try:
        return adapter.validate_python(dict(values))
    except ValidationError as mistakes:
        first = mistakes.errors(include_url=False)[0]
    field, given = str(first["loc"][0]), first["input"]
    name = f"{where}{(spelled or {}).get(field, field)}"
    if first["type"] == "missing":
        raise error(f"{name} is missing")
    if first["type"] == "value_error":
        raise error(f"{name}: {first['ctx']['error']}")
    if first["type"] == "literal_error":
        choices = re.findall(r"'([^']*)'", first["ctx"]["expected"])
        raise error(f"{name}: unknown type {given!r}{nearest(str(given), choices)}")
    expected = adapter.json_schema()["properties"][field]["description"]
    raise error(f"{name}: {values[field]!r} is not valid; expected {expected}")
