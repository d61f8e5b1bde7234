"""Checks values of a file or a user against a dataclass; a mistake is an error of one line.

Pydantic's annotations in the dataclass define what is valid. The description of a field ends its
message, after "expected".
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
        SlimDetError: Of type ``error``: it is not a mapping, or a key is unknown.
    """
    if not isinstance(values, Mapping):
        raise error(f"{where}: expected a mapping of keys, found {values!r}")
    for key in values:
        if key not in known:
            raise error(f"{where}: unknown key '{key}'{nearest(str(key), sorted(known))}")


def validated(
    kind: type[T],
    values: Mapping[str, Any],
    where: str,
    error: type[SlimDetError] = ConfigError,
    spelled: Mapping[str, str] | None = None,
) -> T:
    """Make a dataclass from values, if all of them are valid.

    Args:
        kind: The dataclass.
        values: Field -> value; other keys are ignored (see `check_keys`).
        where: Prefix of a field in messages, with its separator: ``QAT.quant_config.``.
        error: The type of error to raise.
        spelled: Field -> its name in messages, if different.

    Raises:
        SlimDetError: Of type ``error``, for the first field that is missing or invalid.
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
