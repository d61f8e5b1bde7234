"""The latency table: values by hand, what lies between them, and files that are refused."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slim_det.core.errors import LatencyError
from slim_det.graph.operators import fused_activations
from slim_det.planning.profile import read_any_table
from slim_det.planning.profile.shapes import ConvShape
from slim_det.planning.profile.table import Entry, LatencyTable, Origin, read_table, this_machine

HERE = this_machine(1)


def conv(inside: int, out: int, **changes: Any) -> ConvShape:
    """A 3x3 convolution on 8x8 pixels."""
    return ConvShape(**{**ConvShape(inside, out, 8, 8, 3, 1, 1).as_dict(), **changes})


def table_of(times: dict[ConvShape, float], **settings: Any) -> LatencyTable:
    entries = tuple(Entry(shape, ms, ms, ms) for shape, ms in times.items())
    return LatencyTable(HERE, entries, **settings)


SQUARE = table_of(
    {conv(4, 8): 1.0, conv(4, 16): 2.0, conv(8, 8): 3.0, conv(8, 16): 5.0}, other_ms=7.0
)


def test_an_empty_table_reaches_nothing() -> None:
    empty = table_of({})
    assert empty.model_ms([]) == 0.0
    with pytest.raises(LatencyError, match="does not cover 3x3 conv 4->8 of 8x8; .* 0 entries"):
        empty.latency_ms(conv(4, 8))


@pytest.mark.parametrize(
    ("widths", "expected"),
    [
        ((4, 8), 1.0),
        ((8, 16), 5.0),
        ((4, 12), 1.5),
        ((6, 8), 2.0),
        ((6, 12), 2.75),  # (1 + 2 + 3 + 5) / 4
        ((5, 10), 0.75 * 1.25 + 0.25 * 3.5),
        ((4, 4), 0.5),  # in proportion below the narrowest
        ((2, 8), 0.5),
        ((2, 4), 0.25),
    ],
)
def test_between_widths_by_hand(widths: tuple[int, int], expected: float) -> None:
    assert SQUARE.latency_ms(conv(*widths)) == pytest.approx(expected)


@pytest.mark.parametrize("widths", [(9, 8), (4, 17), (100, 100)])
def test_nothing_is_guessed_above_the_widest(widths: tuple[int, int]) -> None:
    with pytest.raises(LatencyError) as error:
        SQUARE.latency_ms(conv(*widths))
    phrase = f"does not cover {conv(*widths)}; the nearest of its 4 entries is 3x3 conv "
    assert phrase in str(error.value)


@pytest.mark.parametrize(
    "changes",
    [{"height": 9}, {"width": 9}, {"kernel": 1}, {"stride": 2}, {"padding": 0}, {"dilation": 2},
     {"groups": 4}, {"groups": 2}],
)  # fmt: skip
def test_other_attributes_must_be_equal(changes: dict[str, int]) -> None:
    with pytest.raises(LatencyError):
        SQUARE.latency_ms(conv(4, 8, **changes))


def test_another_activation_is_used_only_if_its_own_is_missing() -> None:
    table = table_of({conv(4, 8): 1.0, conv(4, 8, act="relu"): 2.0, conv(4, 16, act="relu"): 4.0})
    assert table.latency_ms(conv(4, 8)) == 1.0
    assert table.latency_ms(conv(4, 4, act="relu")) == 1.0
    assert table.latency_ms(conv(4, 16)) == 4.0
    assert table.latency_ms(conv(4, 8, act="tanh")) in (1.0, 2.0)


def test_a_depthwise_convolution_has_one_width() -> None:
    table = table_of({conv(n, n, groups=n): ms for n, ms in ((8, 1.0), (16, 3.0))})
    assert table.latency_ms(conv(12, 12, groups=12)) == 2.0
    assert table.latency_ms(conv(2, 2, groups=2)) == 0.25
    with pytest.raises(LatencyError):
        table.latency_ms(conv(17, 17, groups=17))
    with pytest.raises(LatencyError):
        table.latency_ms(conv(8, 16, groups=8))  # two outputs a channel


def test_a_grid_with_holes_uses_the_rows_that_are_wide_enough() -> None:
    table = table_of({conv(4, 8): 1.0, conv(6, 4): 9.0, conv(8, 8): 3.0, conv(16, 4): 50.0})
    assert table.latency_ms(conv(6, 8)) == 2.0
    assert table.latency_ms(conv(12, 4)) == pytest.approx((1.5 + 50.0) / 2)
    with pytest.raises(LatencyError):
        table.latency_ms(conv(9, 8))


def test_a_model_is_the_sum_and_everything_else() -> None:
    assert SQUARE.model_ms([conv(4, 8), conv(4, 8), conv(6, 12)]) == pytest.approx(7 + 4.75)


GRID = st.lists(st.integers(1, 64), min_size=1, max_size=4, unique=True).map(sorted)


@given(GRID, GRID, st.data())
def test_interpolation_keeps_the_order_and_stays_between_its_corners(
    insides: list[int], outs: list[int], data: st.DataObject
) -> None:
    """From a table that rises with both widths, any two queries keep their order."""
    steps = st.floats(0.0, 10.0)
    times: dict[ConvShape, float] = {}
    for i, inside in enumerate(insides):
        for j, out in enumerate(outs):
            below = [times[conv(insides[i - 1], out)]] if i else [0.0]
            below += [times[conv(inside, outs[j - 1])]] if j else [0.0]
            times[conv(inside, out)] = max(below) + data.draw(steps)
    table = table_of(times)
    wide = (data.draw(st.integers(1, insides[-1])), data.draw(st.integers(1, outs[-1])))
    narrow = (data.draw(st.integers(1, wide[0])), data.draw(st.integers(1, wide[1])))

    lower, upper = table.latency_ms(conv(*narrow)), table.latency_ms(conv(*wide))

    assert lower <= upper + 1e-9
    assert 0.0 <= upper <= times[conv(insides[-1], outs[-1])] + 1e-9


SHAPES = st.builds(
    ConvShape,
    *[st.integers(1, 64)] * 4,
    kernel=st.integers(1, 7),
    stride=st.integers(1, 2),
    padding=st.integers(0, 3),
    dilation=st.integers(1, 2),
    groups=st.just(1),
    act=st.sampled_from(["", *fused_activations()]),
)
MILLISECONDS = st.integers(0, 10**9).map(lambda n: n / 1e6)
ENTRIES = st.lists(
    st.builds(
        lambda shape, times: Entry(shape, times[1], times[0], times[2]),
        SHAPES,
        st.lists(MILLISECONDS, min_size=3, max_size=3).map(sorted),
    ),
    max_size=5,
    unique_by=lambda entry: entry.shape,
).map(tuple)


@given(
    st.builds(
        LatencyTable,
        st.builds(Origin, st.text(), st.text(), st.text(), st.integers(1, 8), st.text()),
        ENTRIES,
        st.integers(0, 100),
        st.none() | st.tuples(st.integers(1, 999), st.integers(1, 999)),
        st.none() | st.integers(-(10**9), 10**9).map(lambda n: n / 1e6),
    )
)
def test_a_table_survives_its_file(
    tmp_path_factory: pytest.TempPathFactory, table: LatencyTable
) -> None:
    path = tmp_path_factory.getbasetemp() / "round_trip.json"
    table.write(path)
    assert read_table(path) == table
    assert read_any_table(path) == table


def test_the_keys_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    table_of({conv(4, 8, act="relu"): 1.5}, repeats=3, image_size_hw=(96, 64)).write(path)
    data = json.loads(path.read_text())
    row = data.pop("convs")[0]
    assert data == {
        "schema": "slim_det.latency/1",
        "engine": "paddle_inference",
        "paddle": HERE.paddle,
        "cpu": HERE.cpu,
        "threads": 1,
        "precision": "float32",
        "repeats": 3,
        "image_size_hw": [96, 64],
        "other_ms": None,
    }
    assert row == {
        **{"in_channels": 4, "out_channels": 8, "height": 8, "width": 8, "kernel": 3, "stride": 1},
        **{"padding": 1, "dilation": 1, "groups": 1, "act": "relu"},
        **{"latency_ms": 1.5, "p10_ms": 1.5, "p90_ms": 1.5},
    }


def test_another_machine_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("slim_det"), "propagate", True)
    SQUARE.write(tmp_path / "here.json")
    LatencyTable(Origin("paddle_lite", "", "Pocket CPU"), ()).write(tmp_path / "there.json")

    read_table(tmp_path / "here.json")
    assert not caplog.messages
    read_table(tmp_path / "there.json")
    assert len(caplog.messages) == 1
    for part in ("engine paddle_lite (here paddle_inference)", "cpu Pocket CPU", "paddle unknown"):
        assert part in caplog.messages[0]


def spoiled(**changes: Any) -> dict[str, Any]:
    """A valid table with top-level keys replaced; None takes a key out."""
    data = {**json.loads(SQUARE.to_json()), **changes}
    return {key: value for key, value in data.items() if value is not ...}


def row(**changes: Any) -> list[dict[str, Any]]:
    first = {**json.loads(SQUARE.to_json())["convs"][0], **changes}
    return [{key: value for key, value in first.items() if value is not ...}]


@pytest.mark.parametrize(
    ("data", "phrase"),
    [
        (spoiled(schema="slim_det.latency/2"), "schema is 'slim_det.latency/2', expected"),
        ([], "schema is 'list', expected"),
        (spoiled(cpu=...), "cpu is missing"),
        (spoiled(threads=0), "threads: 0 is not valid; expected a whole number >= 1"),
        (spoiled(engine=3), "engine: 3 is not valid; expected text"),
        (
            spoiled(image_size_hw=[96]),
            r"image_size_hw: \[96\] is not valid; expected \[height, width\]",
        ),
        (spoiled(other_ms=float("nan")), "other_ms: nan is not valid; expected a finite number"),
        (spoiled(convs={}), "convs is not a list"),
        (spoiled(convs=[3]), r"convs\[0\] is 3; expected a mapping"),
        (spoiled(convs=row(stride=...)), r"convs\[0\].stride is missing"),
        (
            spoiled(convs=row(kernel=0)),
            r"convs\[0\].kernel: 0 is not valid; expected a whole number >= 1",
        ),
        (spoiled(convs=row(padding=-1)), r"convs\[0\].padding: -1 is not valid; .* >= 0"),
        (spoiled(convs=row(kernel=True)), r"convs\[0\].kernel: True is not valid"),
        (spoiled(convs=row(groups=3)), r"convs\[0\]: 3 groups do not divide the channels"),
        (
            spoiled(convs=row(act="rely")),
            r"convs\[0\].act: 'rely' is not valid; expected one of relu",
        ),
        (spoiled(convs=row(act=["relu"])), r"convs\[0\].act: \['relu'\] is not valid"),
        (
            spoiled(convs=row(latency_ms="1")),
            r"convs\[0\].latency_ms: '1' is not valid; expected a finite number",
        ),
        (spoiled(convs=row(p10_ms=1.5)), "expected 0 <= p10_ms <= latency_ms <= p90_ms"),
        (spoiled(convs=row() * 2), "3x3 conv 4->8 of 8x8 is listed twice"),
    ],
)
def test_damaged_tables_are_refused_in_one_line(tmp_path: Path, data: Any, phrase: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(data))
    with pytest.raises(LatencyError, match=phrase) as error:
        read_table(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [None, "", "{", b"\xff\xfe\x00"])
def test_files_that_are_no_json(tmp_path: Path, content: str | bytes | None) -> None:
    path = tmp_path / "bad.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(LatencyError, match="cannot be read"):
        read_any_table(path)
