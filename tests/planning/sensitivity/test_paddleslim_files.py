"""Old pickles: what PaddleSlim wrote is read, and nothing that a pickle can do is done."""

from __future__ import annotations

import collections
import io
import os
import pickle
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slim_det.core.errors import SensitivityError
from slim_det.planning.sensitivity.paddleslim_files import _PlainUnpickler, read_paddleslim_pickle
from slim_det.planning.sensitivity.result import Sources, read_result, write_result

TIP = "yolo_block.0.tip.conv.weights"
FIRST = "yolo_block.0.0.0.conv.weights"
OLD = {"conv9.w": {0.1: 0.5}, TIP: {0.5: 0.75, 0.1: -0.25}, FIRST: {0.1: 0, 0.5: 1.0}}
NEW = {
    "neck.yolo_block.0.conv_module.conv0": {0.1: 0.0, 0.5: 1.0},
    "neck.yolo_block.0.tip": {0.1: -0.25, 0.5: 0.75},
    "conv9.w": {0.1: 0.5},
}

# cPickle.dumps({"conv": {0.5: 0.25}, u"\xe9t\xe9": {0.5: 1}}, protocol) of Python 2.7.18
PYTHON_2 = {
    0: b"(dp1\nS'conv'\np2\n(dp3\nF0.5\nF0.25\nssV\xe9t\xe9\np4\n(dp5\nF0.5\nI1\nss.",
    2: b"\x80\x02}q\x01(U\x04convq\x02}q\x03G?\xe0\x00\x00\x00\x00\x00\x00G?\xd0\x00\x00\x00\x00"
    b"\x00\x00sX\x05\x00\x00\x00\xc3\xa9t\xc3\xa9q\x04}q\x05G?\xe0\x00\x00\x00\x00\x00\x00K\x01"
    b"su.",
}


def written(folder: Path, content: bytes) -> Path:
    path = folder / "sensitivities.data"
    path.write_bytes(content)
    return path


def refused(folder: Path, content: bytes) -> str:
    path = written(folder, content)
    with pytest.raises(SensitivityError) as caught:
        read_paddleslim_pickle(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_names_losses_and_order(tmp_path: Path, protocol: int) -> None:
    result = read_paddleslim_pickle(written(tmp_path, pickle.dumps(OLD, protocol)))
    assert result.groups == NEW and list(result.groups) == list(NEW)
    assert result.request.ratios == (0.1, 0.5)
    assert result.missing == [("conv9.w", 0.5)]
    assert (result.metric, result.criterion, result.ap) == ("unknown", "l1_norm", {})
    assert result.baseline is None and result.conditions.num_images is None
    assert result.sources == Sources()


@pytest.mark.parametrize("protocol", PYTHON_2)
def test_files_of_python_2(tmp_path: Path, protocol: int) -> None:
    result = read_paddleslim_pickle(written(tmp_path, PYTHON_2[protocol]))
    assert result.groups == {"conv": {0.5: 0.25}, "été": {0.5: 1.0}}


def test_an_import_is_a_result_like_any_other(tmp_path: Path) -> None:
    result = read_paddleslim_pickle(written(tmp_path, pickle.dumps(OLD)))
    write_result(tmp_path / "s.json", result)
    assert read_result(tmp_path / "s.json") == result


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    losses=st.dictionaries(
        st.text("abc.é\n", min_size=1),
        st.dictionaries(st.floats(0.01, 0.99), st.floats(-5, 1), min_size=1, max_size=4),
        min_size=1,
        max_size=4,
    ),
    protocol=st.integers(0, pickle.HIGHEST_PROTOCOL),
)
def test_any_losses(tmp_path: Path, losses: dict[str, Any], protocol: int) -> None:
    assert (
        read_paddleslim_pickle(written(tmp_path, pickle.dumps(losses, protocol))).groups == losses
    )


class Harm:
    """An object whose unpickling would make a file."""

    def __init__(self, trace: Path) -> None:
        self._trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self._trace}'",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_nothing_is_run(tmp_path: Path, protocol: int) -> None:
    trace = tmp_path / "harmed"
    for value in (Harm(trace), {TIP: Harm(trace)}, {TIP: {0.1: Harm(trace)}}, {Harm(trace): {}}):
        message = refused(tmp_path, pickle.dumps(value, protocol))
        assert "system" in message and "could run code" in message
    assert not trace.exists()
    pickle.loads(pickle.dumps(Harm(trace), protocol))
    assert trace.exists()  # it would have


class Slotted:
    """A class of this module; no code of it would even run."""


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("value", [Slotted(), collections.OrderedDict(OLD), 1j, len])
def test_objects(tmp_path: Path, value: Any, protocol: int) -> None:
    assert "holds an object (" in refused(tmp_path, pickle.dumps(value, protocol))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_numbers_of_numpy_and_how_to_convert_them(tmp_path: Path, protocol: int) -> None:
    for value in (np.float64(0.5), np.float32(0.5)):
        message = refused(tmp_path, pickle.dumps({TIP: {0.1: value}}, protocol))
        assert "numbers of numpy (numpy" in message and "float(l)" in message
        converted = {
            n: {float(r): float(v) for r, v in d.items()} for n, d in {TIP: {0.1: value}}.items()
        }
        assert read_paddleslim_pickle(written(tmp_path, pickle.dumps(converted, protocol)))


@pytest.mark.parametrize(
    ("value", "phrase"),
    [
        ({}, "holds nothing"),
        (0.5, "holds float"),
        ("text", "holds str"),
        ([OLD], "holds a list"),
        ((OLD,), "holds a tuple"),
        (None, "holds None"),
        (b"bytes", "holds bytes"),
        ({1, 2}, "holds a set"),
        ({TIP: {0.1: True}}, "NEWTRUE"),
        ({TIP: None}, "None"),
        ({TIP: {"pruned_percent": [0.1], "loss": [0.5], "size": 512}}, "a list"),
        ({TIP: 0.5}, "holds float"),
        ({3: {0.1: 0.5}}, "entry 3"),
        ({TIP: {"0.1": 0.5}}, "ratio '0.1'"),
        ({TIP: {1: 0.5}}, "ratio 1"),
        ({TIP: {0.0: 0.5}}, "ratio 0.0"),
        ({TIP: {float("nan"): 0.5}}, "ratio nan"),
        ({TIP: {0.1: "0.5"}}, "loss '0.5'"),
        ({TIP: {0.1: float("inf")}}, "loss inf"),
        ({TIP: {0.1: 1.5}}, "loss 1.5"),
        ({TIP: {0.1: {0.1: 0.5}}}, "loss {0.1: 0.5}"),
        ({TIP: {0.1: 0.5}, "neck.yolo_block.0.tip": {0.1: 0.5}}, "is given twice"),
    ],
)
def test_other_values(tmp_path: Path, value: Any, phrase: str) -> None:
    assert phrase in refused(tmp_path, pickle.dumps(value, 4))


def test_a_truth_value_of_protocol_0(tmp_path: Path) -> None:
    assert "loss True" in refused(tmp_path, pickle.dumps({TIP: {0.1: True}}, 0))


def test_a_mapping_that_holds_itself(tmp_path: Path) -> None:
    loop: dict[str, Any] = {}
    loop[TIP] = loop
    assert "ratio" in refused(tmp_path, pickle.dumps(loop))


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_cut_at_every_byte(tmp_path: Path, protocol: int) -> None:
    content = pickle.dumps(OLD, protocol)
    for size in range(len(content)):
        refused(tmp_path, content[:size])


def test_a_byte_changed_anywhere_never_escapes(tmp_path: Path) -> None:
    """Every change is refused in one line, or still gives plain losses."""
    content = pickle.dumps(OLD, 2)
    for at in range(len(content)):
        for flip in (0x01, 0x10, 0x80, 0xFF):
            damaged = bytearray(content)
            damaged[at] ^= flip
            path = written(tmp_path, bytes(damaged))
            try:
                groups = read_paddleslim_pickle(path).groups
            except SensitivityError as error:
                assert "\n" not in str(error)
            else:
                assert all(
                    0 < r < 1 and type(v) is float for d in groups.values() for r, v in d.items()
                )


@pytest.mark.parametrize(
    "content", [b"", b"not a pickle", b"\x89PNG\r\n", b"{}", b"\x80\x07.", b"."]
)
def test_no_pickle(tmp_path: Path, content: bytes) -> None:
    refused(tmp_path, content)


def test_a_far_place_to_remember_takes_no_memory(tmp_path: Path) -> None:
    """`LONG_BINPUT` makes the unpickler's memo as long as the place it names: 2 GB here."""
    content = b"\x80\x02}r" + struct.pack("<I", 1 << 27) + b"."
    assert "damaged at byte 3" in refused(tmp_path, content)


def test_the_unpickler_itself_makes_no_objects_either(tmp_path: Path) -> None:
    """The second of two locks: what passes the look at the instructions is not run."""
    with pytest.raises(SensitivityError, match="could run code"):
        _PlainUnpickler(io.BytesIO(pickle.dumps(Harm(tmp_path / "harmed")))).load()
    with pytest.raises(SensitivityError, match="persistent"):
        _PlainUnpickler(io.BytesIO(b"Pid\n.")).load()
    assert list(tmp_path.iterdir()) == []


def test_an_extension_code_is_no_way_round(tmp_path: Path) -> None:
    assert "EXT1" in refused(tmp_path, b"\x80\x02\x82\x01.")
    assert "PERSID" in refused(tmp_path, b"Pid\n.")


def test_too_large(tmp_path: Path) -> None:
    assert "larger than 16 MB" in refused(tmp_path, bytes((16 << 20) + 1))


def test_too_many_instructions(tmp_path: Path) -> None:
    bomb = zlib.decompress(zlib.compress(b"\x80\x02" + b"}" * 1_000_001 + b"."))
    assert "1000000 instructions" in refused(tmp_path, bomb)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(SensitivityError, match="cannot be read"):
            read_paddleslim_pickle(path)
