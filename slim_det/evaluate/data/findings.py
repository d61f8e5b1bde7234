"""What is wrong with a data set, or worth saying about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from slim_det.core.errors import DataError

SHOWN = 5
"""Number of places that a line names."""
LONGEST = 300
"""Characters of a place that a line shows."""


@dataclass(frozen=True)
class Kind:
    """A kind of fault, or of remark.

    Attributes:
        one: What a single one is: ``box without area``.
        many: What several are: ``boxes without area``.
        rest: What was expected, or what becomes of them.
    """

    one: str
    many: str
    rest: str

    def line(self, places: Sequence[str]) -> str:
        """Say how many there are, where the first ones are, and what was expected."""
        more = f" and {len(places) - SHOWN} more" if len(places) > SHOWN else ""
        noun = self.one if len(places) == 1 else self.many
        return f"{len(places)} {noun}: {', '.join(map(_line, places[:SHOWN]))}{more}; {self.rest}"


class Findings:
    """Faults, which make a data set unusable, and remarks on what is read in another way.

    Attributes:
        faults: Kind -> the place of each, such as ``'a.xml' object 2 (cat)``.
        remarks: The same for remarks.
    """

    def __init__(self) -> None:
        self.faults: dict[Kind, list[str]] = {}
        self.remarks: dict[Kind, list[str]] = {}

    def fault(self, kind: Kind, place: str) -> None:
        """Add a fault."""
        self.faults.setdefault(kind, []).append(place)

    def remark(self, kind: Kind, place: str) -> None:
        """Add a remark."""
        self.remarks.setdefault(kind, []).append(place)

    def check(
        self,
        adapter: TypeAdapter[Any],
        value: Any,
        place: Callable[[Sequence[Any]], str],
        expected: Mapping[str, str],
    ) -> bool:
        """Add a fault for everything in a structure that its type does not allow.

        Args:
            adapter: Pydantic's description of what is allowed.
            value: The structure.
            place: Where a fault is, from the path of keys and indices that lead to it.
            expected: Key -> what it should hold.

        Returns:
            Whether all of it is valid.
        """
        try:
            adapter.validate_python(value)
            return True
        except ValidationError as mistakes:
            seen = set()
            for mistake in mistakes.errors(include_url=False, include_context=False):
                key, path = _named(mistake["loc"], expected)
                if mistake["type"] == "dict_type":  # an entry of a list
                    path = mistake["loc"]
                if path in seen:
                    continue  # the members of a union, or of a list, each say what they expect
                seen.add(path)
                missing = mistake["type"] == "missing" and path == mistake["loc"]
                found = "" if missing else f": {_short(_at(value, path))}"
                word = "missing" if missing else "invalid"
                kind = Kind(f"{word} '{key}'", f"{word} '{key}'", f"expected {expected[key]}")
                self.fault(kind, place(path) + found)
            return False

    def require_none(self, name: str = "") -> None:
        """Raise the faults as one error, whose message has one line.

        Args:
            name: Start of the message, such as ``TrainDataset: ``.

        Raises:
            DataError: There is a fault.
        """
        if self.faults:
            lines = [kind.line(places) for kind, places in self.faults.items()]
            raise DataError(name + "; ".join(lines))


def _line(place: str) -> str:
    """A place without line breaks, control characters and other text that cannot be seen."""
    shown = place if len(place) <= LONGEST else f"{place[: LONGEST - 3]}..."
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in shown
    )


def _named(loc: tuple[Any, ...], expected: Mapping[str, str]) -> tuple[str, tuple[Any, ...]]:
    """The innermost key of a path that has a name, and the path up to it."""
    last = max(i for i, part in enumerate(loc) if part in expected)
    return loc[last], loc[: last + 1]


def _at(value: Any, path: Sequence[Any]) -> Any:
    for part in path:
        value = value[part]
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
