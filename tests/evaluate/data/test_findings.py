"""What is wrong with a data set is said in one line, however much it is."""

from __future__ import annotations

import pytest
from pydantic import StrictInt, TypeAdapter
from typing_extensions import TypedDict

from slim_det.core.errors import DataError
from slim_det.evaluate.data.findings import Findings, Kind

FLAT = Kind("flat box", "flat boxes", "expected an area")


class _Entry(TypedDict):
    id: StrictInt
    sides: list[StrictInt]


ENTRIES: TypeAdapter[list[_Entry]] = TypeAdapter(list[_Entry])


@pytest.mark.parametrize(
    ("count", "line"),
    [
        (1, "1 flat box: 0; expected an area"),
        (2, "2 flat boxes: 0, 1; expected an area"),
        (5, "5 flat boxes: 0, 1, 2, 3, 4; expected an area"),
        (7, "7 flat boxes: 0, 1, 2, 3, 4 and 2 more; expected an area"),
    ],
)
def test_five_places_are_named(count: int, line: str) -> None:
    assert FLAT.line([str(i) for i in range(count)]) == line


def test_nothing_found() -> None:
    findings = Findings()
    findings.remark(FLAT, "a")
    findings.require_none("Train: ")  # remarks are no faults


def test_all_kinds_in_one_error() -> None:
    findings = Findings()
    findings.fault(FLAT, "a")
    findings.fault(Kind("gap", "gaps", "expected none"), "b")
    findings.fault(FLAT, "c")
    with pytest.raises(DataError) as caught:
        findings.require_none("Train: ")
    assert str(caught.value) == (
        "Train: 2 flat boxes: a, c; expected an area; 1 gap: b; expected none"
    )


def test_structure() -> None:
    """A wrong element of a list is one fault of the list, and is shown with it."""
    findings = Findings()
    expected = {"id": "a number", "sides": "numbers"}

    def check(value: object) -> bool:
        return findings.check(ENTRIES, value, lambda path: f"entry {path[0]}", expected)

    assert check([{"id": 1, "sides": [1]}]) and not findings.faults
    assert not check([{"id": 1, "sides": ["a", "b"]}, {"sides": [1]}, {"id": "x", "sides": []}])
    lines = [kind.line(places) for kind, places in findings.faults.items()]
    assert lines == [
        "1 invalid 'sides': entry 0: ['a', 'b']; expected numbers",
        "1 missing 'id': entry 1; expected a number",
        "1 invalid 'id': entry 2: 'x'; expected a number",
    ]
