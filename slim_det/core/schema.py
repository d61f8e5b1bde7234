"""Checks values of a file or a user against a dataclass; a mistake is an error of one line.

Pydantic's annotations in the dataclass define what is valid. The description of a field ends its
message, after "expected".
"""

from __future__ import annotations

import functools
import re
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Annotated, Any, TypeVar

from pydantic import Field, Strict, TypeAdapter, ValidationError

from slim_det.core.errors import ConfigError, SlimDetError, nearest

T = TypeVar("T")

Count = Annotated[int, Strict(), Field(ge=1, description="a whole number >= 1")]
FiniteNumber = Annotated[float, Strict(), Field(allow_inf_nan=False, description="a finite number")]
Switch = Annotated[bool, Strict(), Field(description="true or false")]

_adapter_of: Callable[[Any], TypeAdapter[Any]] = functools.lru_cache(maxsize=None)(TypeAdapter)


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
    complete: bool = False,
) -> T:
    """Make a dataclass from values, if all of them are valid.

    Args:
        kind: The dataclass.
        values: Field -> value; other keys are ignored (see `check_keys`).
        where: Prefix of a field in messages, with its separator: ``QAT.quant_config.``.
        error: The type of error to raise.
        spelled: Field -> its name in messages, if different.
        complete: Whether fields that have a default must be given as well.

    Raises:
        SlimDetError: Of type ``error``, for the first field that is missing or invalid.
    """
    if complete:
        for own in fields(kind):  # type: ignore[arg-type]
            if own.name not in values:
                raise error(f"{where}{own.name} is missing")
    adapter = _adapter_of(kind)
    try:
        return adapter.validate_python(dict(values))
    except ValidationError as mistakes:
        first = mistakes.errors(include_url=False)[0]
    field, *inside = first["loc"]
    path = [part for part in inside if isinstance(part, str) and part != "[key]"]
    name = ".".join([f"{where}{(spelled or {}).get(str(field), field)}", *path])
    if first["type"] == "missing" and isinstance(first["loc"][-1], str):
        raise error(f"{name} is missing")
    if first["type"] == "value_error":
        raise error(f"{name}: {first['ctx']['error']}")
    if first["type"] == "literal_error":
        choices = re.findall(r"'([^']*)'", first["ctx"]["expected"])
        raise error(
            f"{name}: unknown type {first['input']!r}{nearest(str(first['input']), choices)}"
        )
    expected = adapter.json_schema()["properties"][field]["description"]
    given = values[str(field)]
    if path or (inside and reprlib.repr(given) != repr(given)):
        given = first["input"]  # the part that is wrong, where the value is too long to show
    raise error(f"{name}: {reprlib.repr(given)} is not valid; expected {expected}")
