"""Stored matches: a round trip through bytes, damage noticed, and the order of pooled boxes."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from slim_det.evaluate.image_matches import ImageMatches, image_indices, pool_by_class

COLUMNS = ("classes", "scores", "hits", "ignored")


def of(classes: Any, scores: Any, hits: Any, ignored: Any) -> ImageMatches:
    return ImageMatches(
        np.array(classes, np.int16),
        np.array(scores, np.float32),
        np.array(hits, np.uint16),
        np.array(ignored, np.uint16),
    )


@st.composite
def any_matches(draw: st.DrawFn) -> ImageMatches:
    count = draw(st.integers(0, 30))
    hits = draw(hnp.arrays(np.uint16, count))
    return of(
        draw(hnp.arrays(np.int16, count)),
        draw(hnp.arrays(np.float32, count)),
        hits,
        draw(hnp.arrays(np.uint16, count)) & ~hits,
    )


def test_bytes_of_no_boxes() -> None:
    data = of([], [], [], []).to_bytes()
    assert len(data) == 12
    read = ImageMatches.from_bytes(data)
    assert all(len(getattr(read, name)) == 0 for name in COLUMNS)


@given(any_matches())
def test_bytes_round_trip(matches: ImageMatches) -> None:
    data = matches.to_bytes()
    assert len(data) == 12 + 10 * len(matches.classes)
    read = ImageMatches.from_bytes(data)
    for name in COLUMNS:
        before, after = getattr(matches, name), getattr(read, name)
        assert after.dtype == before.dtype and after.flags.writeable
        assert after.tobytes() == before.tobytes()


@given(any_matches(), st.data())
def test_a_changed_byte_is_noticed(matches: ImageMatches, data: st.DataObject) -> None:
    stored = bytearray(matches.to_bytes())
    stored[data.draw(st.integers(0, len(stored) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ValueError, match="match"):
        ImageMatches.from_bytes(bytes(stored))


@given(any_matches(), st.data())
def test_cut_or_lengthened_bytes_are_noticed(matches: ImageMatches, data: st.DataObject) -> None:
    stored = matches.to_bytes()
    with pytest.raises(ValueError, match="match"):
        ImageMatches.from_bytes(stored[: data.draw(st.integers(0, len(stored) - 1))])
    with pytest.raises(ValueError, match="match"):
        ImageMatches.from_bytes(stored + b"\0")


def test_a_box_cannot_be_right_and_ignored() -> None:
    with pytest.raises(ValueError, match="both a hit and ignored"):
        ImageMatches.from_bytes(of([0], [0.5], [3], [2]).to_bytes())


def test_layout_does_not_depend_on_the_machine() -> None:
    data = of([258], [1.0], [1], [2]).to_bytes()
    assert data[:4] == b"SDM1"
    assert data[8:] == struct.pack("<IhfHH", 1, 258, 1.0, 1, 2)


def test_pool_of_nothing() -> None:
    assert [len(hits) for hits, _ in pool_by_class([], 2)] == [0, 0]
    assert [len(hits) for hits, _ in pool_by_class([of([], [], [], [])], 2)] == [0, 0]


def test_pool_by_falling_score_and_ties_in_order() -> None:
    first = of([1, 0, 1], [0.5, 0.5, 0.9], [1, 2, 3], [0, 0, 0])
    second = of([1, 3, 1], [0.5, 0.9, 0.9], [4, 9, 5], [8, 0, 0])
    pooled = pool_by_class([first, second], 3)
    assert [hits.tolist() for hits, _ in pooled] == [[2], [3, 5, 1, 4], []]
    assert [ignored.tolist() for _, ignored in pooled] == [[0], [0, 0, 0, 8], []]


def test_images_of_matches() -> None:
    one = of([], [], [], [])
    assert image_indices([], None, 0).tolist() == []
    assert image_indices([one, one], None, 2).tolist() == [0, 1]
    assert image_indices([one, one, one], [1, 0, 1], 2).tolist() == [1, 0, 1]
    with pytest.raises(ValueError, match="matches of 1 images given for 2 images"):
        image_indices([one], None, 2)
    for unknown in (-1, 2):
        with pytest.raises(ValueError, match="valid: 0 to 1"):
            image_indices([one], [unknown], 2)
