"""The older text table: its rows, its published sums, and lines that are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slim_det.core.errors import LatencyError
from slim_det.planning.profile import read_any_table
from slim_det.planning.profile.paddleslim_table import (
    PaddleSlimRow,
    PaddleSlimTable,
    from_latency_table,
    read_paddleslim_table,
    to_latency_table,
    write_paddleslim_table,
)
from slim_det.planning.profile.shapes import ConvShape
from slim_det.planning.profile.table import Entry, LatencyTable, Origin

HEADER = "op_type\t855\tus\n"
CONV = "conv,0,0,1,3,640,640,8,1,3,1,2,1"

STEM = 12
SINGLES = [(12, 1), (12, 2), (12, 1)]
"""Output channels and stride of the single blocks of the searched BlazeFace."""

DOUBLES = {
    "NAS": [(16, 24, 2), (12, 24, 1), (16, 72, 2), (12, 72, 1)],
    "NAS_V2": [(16, 32, 2), (32, 32, 1), (16, 72, 2), (24, 72, 1)],
}
"""Middle channels, output channels and stride of the double blocks."""

PUBLISHED_US = {"NAS": 21117, "NAS_V2": 22558}


@pytest.fixture
def snapdragon(shared: Path) -> Path:
    path = shared / "data" / "latency_855.txt"
    if not path.is_file():
        pytest.skip(f"needs ../{path.relative_to(path.parents[2])}, which is not there")
    return path


def blazeface(doubles: list[tuple[int, int, int]]) -> list[ConvShape]:
    """The convolutions of a searched BlazeFace with 3x3 kernels on 640x640 pixels.

    A depthwise convolution is two of 3x3, the stride in the second; a block with a stride has a
    1x1 convolution in its shortcut, behind a pooling; each of the two outputs has two 3x3
    convolutions for 2 and 6 anchors: 4 coordinates and 2 scores an anchor.
    """
    shapes: list[ConvShape] = []

    def conv(inside: int, out: int, side: int, kernel: int, stride: int = 1) -> None:
        groups = inside if kernel == 3 and inside == out else 1
        shapes.append(ConvShape(inside, out, side, side, kernel, stride, kernel // 2, 1, groups))

    def separable(inside: int, out: int, side: int, stride: int) -> None:
        conv(inside, inside, side, 3)
        conv(inside, inside, side, 3, stride)
        conv(inside, out, side // stride, 1)

    conv(3, STEM, 640, 3, 2)
    width, side, taps = STEM, 320, []
    for out, stride in SINGLES:
        separable(width, out, side, stride)
        side //= stride
        if stride > 1:
            conv(width, out, side, 1)
        width = out
    for middle, out, stride in doubles:
        if stride > 1:
            taps.append((width, side))
        separable(width, middle, side, stride)
        side //= stride
        separable(middle, out, side, 1)
        if stride > 1:
            conv(width, out, side, 1)
        width = out
    for (channels, place), anchors in zip([taps[-1], (width, side)], (2, 6)):
        for numbers in (4, 2):
            # a 3x3 convolution of equal widths is not depthwise here
            out = numbers * anchors
            shapes.append(ConvShape(channels, out, place, place, 3, 1, 1))
    return shapes


@pytest.mark.parametrize("name", DOUBLES)
def test_published_latencies_of_searched_models(snapdragon: Path, name: str) -> None:
    """The sums that were published with the models: 21.117 ms and 22.558 ms."""
    table = to_latency_table(read_paddleslim_table(snapdragon))
    shapes = blazeface(DOUBLES[name])
    assert len(shapes) == 41
    assert {shape for shape in shapes} <= {entry.shape for entry in table.entries}
    assert table.model_ms(shapes) * 1e3 == pytest.approx(PUBLISHED_US[name])


def test_the_real_table_survives_reading_and_writing(snapdragon: Path, tmp_path: Path) -> None:
    old = read_paddleslim_table(snapdragon)
    assert len(old.rows) == 595
    assert old.device == "855"

    write_paddleslim_table(tmp_path / "again.txt", old)
    assert (tmp_path / "again.txt").read_bytes() == snapdragon.read_bytes()

    there_and_back = from_latency_table(to_latency_table(old))
    assert there_and_back == old


def test_the_real_table_is_read_without_being_told_its_format(snapdragon: Path) -> None:
    table = read_any_table(snapdragon)
    stem = ConvShape(3, 8, 640, 640, 3, 2, 1)
    assert table.latency_ms(stem) == pytest.approx(2.433)
    assert table.other_ms is None
    assert table.origin.cpu == "855"


def test_a_table_without_rows(tmp_path: Path) -> None:
    path = tmp_path / "empty.txt"
    path.write_text(HEADER)
    assert read_paddleslim_table(path) == PaddleSlimTable("op_type\t855\tus", ())
    assert to_latency_table(read_paddleslim_table(path)).entries == ()


def test_other_operators_are_kept_when_rewritten_and_named_when_left_behind(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slim_det.planning.profile.paddleslim_table.logger.propagate", True)
    text = HEADER + f"eltwise,2,1,8,4,4\t3.5\n{CONV}\t2433\nsoftmax,-1,1,8,4,4\t7\n"
    path, again = tmp_path / "old.txt", tmp_path / "again.txt"
    path.write_text(text)

    old = read_paddleslim_table(path)
    write_paddleslim_table(again, old)
    table = to_latency_table(old)

    assert again.read_text() == text
    assert [entry.shape for entry in table.entries] == [ConvShape(3, 8, 640, 640, 3, 2, 1)]
    assert caplog.messages == ["2 rows are not convolutions and are left out: eltwise, softmax"]


SIZES = st.integers(1, 64)
SHAPES = st.builds(
    lambda place, groups, widths, act: ConvShape(
        groups * widths[0], groups * widths[1], *place, groups=groups, act=act
    ),
    st.tuples(SIZES, SIZES, st.integers(1, 7), SIZES, st.integers(0, 3), SIZES),
    SIZES,
    st.tuples(SIZES, SIZES),
    st.sampled_from(["", "relu"]),
)


@given(st.dictionaries(SHAPES, st.integers(0, 10**6), max_size=5))
def test_convolutions_survive_the_text(
    tmp_path_factory: pytest.TempPathFactory, times_us: dict[ConvShape, int]
) -> None:
    path = tmp_path_factory.getbasetemp() / "old.txt"
    entries = [Entry(shape, us / 1e3, us / 1e3, us / 1e3) for shape, us in times_us.items()]
    table = LatencyTable(Origin("unknown", "", "855"), tuple(entries))

    write_paddleslim_table(path, from_latency_table(table))

    assert to_latency_table(read_paddleslim_table(path)) == table


def test_an_activation_the_text_cannot_hold(tmp_path: Path) -> None:
    shape = ConvShape(3, 8, 64, 64, 3, act="leaky_relu")
    table = LatencyTable(Origin("unknown", "", "855"), (Entry(shape, 1.0, 1.0, 1.0),))
    with pytest.raises(LatencyError, match="cannot hold 3x3 conv 3->8 .*leaky_relu: its only"):
        from_latency_table(table)


@pytest.mark.parametrize(
    ("rows", "phrase"),
    [
        (f"{CONV} 2433", "line 2: .* has no tab"),
        (f"{CONV}\tfast", "line 2: latency 'fast' is not a number"),
        (f"{CONV}\t-1", "line 2: latency '-1' is not a number"),
        (f"{CONV}\tnan", "line 2: latency 'nan' is not a number"),
        (f"{CONV}\t1\n\n{CONV}\t2", "line 4: .* is listed twice"),
        ("conf,1\t3", r"line 2: unknown operator 'conf'; did you mean 'conv'\?"),
        (f"{CONV},1\t3", "line 2: .* is not a convolution; expected 'conv' and 12 integers"),
        ("conv,0,0,1,3,640,640,8,1,3,1,-2,1\t3", "line 2: .* is not a convolution"),
        ("conv,0,0,1,3,640,640,8,1,3,1,0,1\t3", "line 2: .* sizes at least 1"),
        ("conv,0,2,1,3,640,640,8,1,3,1,1,1\t3", "line 2: .* flags are 0 or 1"),
        ("conv,0,0,1,3,640,640,8,2,3,1,1,1\t3", "line 2: .* 2 groups do not divide"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, rows: str, phrase: str) -> None:
    path = tmp_path / "bad.txt"
    path.write_text(HEADER + rows + "\n")
    with pytest.raises(LatencyError, match=phrase):
        read_paddleslim_table(path)


@pytest.mark.parametrize("content", ["", f"{CONV}\t3\n"])
def test_a_file_without_header(tmp_path: Path, content: str) -> None:
    path = tmp_path / "bad.txt"
    path.write_text(content)
    with pytest.raises(LatencyError, match="line 1: expected a header"):
        read_paddleslim_table(path)


def test_what_one_image_and_one_bias_cannot_tell_apart() -> None:
    batch = PaddleSlimTable(
        "op_type\t855\tus", (PaddleSlimRow("conv,0,0,4,3,8,8,8,1,3,1,1,1", 1.0),)
    )
    with pytest.raises(LatencyError, match="measured with 4 images; expected 1"):
        to_latency_table(batch)
    keys = [f"conv,{bias},0,1,3,8,8,8,1,3,1,1,1" for bias in (0, 1)]
    both = PaddleSlimTable("op_type\t855\tus", tuple(PaddleSlimRow(key, 1.0) for key in keys))
    with pytest.raises(LatencyError, match="with bias and without"):
        to_latency_table(both)
