"""The engine loads, runs and stays silent."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import paddle
import pytest
from paddle.static import InputSpec

from slim_det.core.errors import ExportError
from slim_det.graph import engine
from slim_det.graph.engine import Engine, cpu_has_int8, silent_streams
from slim_det.graph.int8_program import write_int8
from tests.compress.quantize.nets import make_quantized, picture
from tests.graph.nets import SHAPE, engine_of, folded_with_scales, traced

LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")


@pytest.fixture
def unasked(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """The CPU is queried again for the test, and once more after it; nothing limits oneDNN."""
    for name in LIMITS:
        monkeypatch.delenv(name, raising=False)
    cpu_has_int8.cache_clear()
    yield monkeypatch
    cpu_has_int8.cache_clear()


@pytest.mark.parametrize(
    "flags, expected",
    [
        ("", False),
        ("flags : fpu avx2 avx512f", False),
        ("flags\t\t: fpu avx512_vnni sse", True),
        ("flags : avx_vnni", True),
        ("flags : amx_int8 amx_tile", True),
        ("flags : not_avx_vnni", False),
        ("model name : made avx_vnni", False),
    ],
)
def test_int8_instructions(
    unasked: pytest.MonkeyPatch, tmp_path: Path, flags: str, expected: bool
) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(f"processor : 0\n{flags}\n")
    unasked.setattr(engine, "_CPU_INFO", path)
    assert cpu_has_int8() is expected


@pytest.mark.parametrize(
    ("limits", "flag", "expected"),
    [
        (("", "AVX2"), "avx512_vnni", False),
        (("avx512_core", ""), "amx_int8", False),
        (("", "AVX512_CORE_VNNI"), "avx512_vnni", True),
        (("", "AVX2_VNNI"), "avx512_vnni", False),
        (("", "AVX2_VNNI"), "avx_vnni", True),
        (("AVX2", "AVX512_CORE_VNNI"), "avx512_vnni", False),
        (("AVX512_CORE_VNNI", "AVX2"), "avx512_vnni", True),
        (("", "ALL"), "avx512_vnni", True),
        (("", "AVX512_CORE_VNNI"), "avx512f", False),
    ],
)
def test_int8_instructions_that_onednn_may_use(
    unasked: pytest.MonkeyPatch,
    tmp_path: Path,
    limits: tuple[str, str],
    flag: str,
    expected: bool,
) -> None:
    """Its newer variable wins; neither adds instructions to a CPU without them."""
    path = tmp_path / "cpuinfo"
    path.write_text(f"flags : avx2 {flag}\n")
    unasked.setattr(engine, "_CPU_INFO", path)
    for name, limit in zip(LIMITS, limits):
        unasked.setenv(name, limit)
    assert cpu_has_int8() is expected


def test_system_that_cannot_be_asked(unasked: pytest.MonkeyPatch, tmp_path: Path) -> None:
    unasked.setattr(engine, "_CPU_INFO", tmp_path / "gone")
    assert cpu_has_int8() is False


def test_int8_engine_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Its passes announce every step; output printed before and after is not lost."""
    program, scales = folded_with_scales(make_quantized(), SHAPE, tmp_path)
    write_int8(program, scales)
    capfd.readouterr()
    print("before")
    found = engine_of(program, tmp_path, int8=True)
    found({"x": picture().numpy()})
    print("after")
    assert capfd.readouterr() == ("before\nafter\n", "")


def test_silence_ends_with_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError), silent_streams():
        os.write(1, b"dropped")
        os.write(2, b"dropped")
        raise ValueError
    os.write(1, b"out")
    os.write(2, b"err")
    assert capfd.readouterr() == ("out", "err")


@pytest.mark.parametrize("content", [b"", b"not a program"])
def test_files_that_are_no_program(tmp_path: Path, content: bytes) -> None:
    for name in ("a.pdmodel", "a.pdiparams"):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(
        ExportError, match=r"a.pdmodel' and its parameters cannot be loaded"
    ) as error:
        Engine(tmp_path / "a", 1)
    assert "\n" not in str(error.value)


def test_inputs_of_other_types_are_taken_as_float32(tmp_path: Path) -> None:
    program, _ = folded_with_scales(make_quantized(), SHAPE, tmp_path)
    run = engine_of(program, tmp_path)
    (left,) = run({"x": picture().numpy(), "unused": np.zeros(1)}).values()
    (right,) = run({"x": picture().numpy().astype("float64")}).values()
    assert left.dtype == np.float32 and np.array_equal(left, right)


def test_program_of_no_further_use(tmp_path: Path) -> None:
    """Its files are deleted after loading, and after a failure to load."""
    program, _ = folded_with_scales(make_quantized(), SHAPE, tmp_path)
    before = sorted(tmp_path.iterdir())
    (found,) = Engine.of(program.save, tmp_path, threads=1)({"x": picture().numpy()}).values()
    (expected,) = program.engine(threads=1)({"x": picture().numpy()}).values()
    assert np.array_equal(found, expected)
    with pytest.raises(ExportError, match="cannot be loaded"):
        Engine.of(lambda stem: None, tmp_path)
    assert sorted(tmp_path.iterdir()) == before


def test_integers_that_are_declared_stay_integers(tmp_path: Path) -> None:
    """16777217 is no float32."""

    class Next(paddle.nn.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.scale = self.create_parameter([1])

        def forward(self, x: paddle.Tensor) -> list[paddle.Tensor]:
            return [x + 1, paddle.cast(x, "float32") * self.scale]

    program = traced(Next(), InputSpec([1], "int64", "x"), tmp_path)
    found = engine_of(program, tmp_path)({"x": np.array([2**24 + 1])})
    assert found[program.fetches[0]].tolist() == [2**24 + 2]


def test_a_part_without_parameters(tmp_path: Path) -> None:
    """Paddle writes no file of parameters for it."""
    layers = paddle.nn.Sequential(paddle.nn.Conv2D(2, 3, 1), paddle.nn.ReLU())
    program = traced(layers, InputSpec(list(SHAPE), "float32", "x"), tmp_path)
    relu = next(op for op in program.ops if op.type == "relu")
    part = program.engine([relu.input("X")], [relu.output()], tmp_path, threads=1)
    x = picture().numpy()[:, [0, 1, 1]]
    (found,) = part({relu.input("X"): x}).values()
    assert x.min() < 0.0 < x.max()
    assert np.array_equal(found, np.maximum(x, 0.0))


def test_prepared_run_reads_the_inputs_of_before(tmp_path: Path) -> None:
    program, _ = folded_with_scales(make_quantized(), SHAPE, tmp_path)
    engine = engine_of(program, tmp_path)
    x = picture().numpy()
    run = engine.prepared({"x": x})
    (expected,) = engine({"x": x}).values()
    x[:] = 0.0
    assert run() is None
    handle = engine._predictor.get_output_handle(engine.outputs[0])
    assert np.array_equal(handle.copy_to_cpu(), expected)
