"""Paddle Inference: one loaded program, with the settings that make it fast on a CPU."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from paddle import inference
from paddle.base import core
from paddle.base.data_feeder import convert_dtype

from slim_det.core.errors import ExportError, engine_reason

INT8_INSTRUCTIONS = ("avx512_vnni", "avx_vnni", "amx_int8")
"""Flags of CPUs whose int8 products are faster than float ones."""

NO_INT8 = "oneDNN has no int8 instructions here (this CPU, or DNNL_MAX_CPU_ISA)"
"""Message about a process in which `cpu_has_int8` is False."""

_INT8_WITHIN = {
    **dict.fromkeys(("sse41", "avx", "avx2", "avx512_core"), ()),
    **dict.fromkeys(("avx2_vnni", "avx2_vnni_2"), ("avx_vnni",)),
}
"""Limit of oneDNN's instruction sets -> flags that it leaves; every other limit leaves all."""

_CPU_INFO = Path("/proc/cpuinfo")


class Engine:
    """A loaded program.

    Args:
        stem: ``.pdmodel`` and ``.pdiparams`` without suffix; not needed after loading.
        threads: CPU threads; default all cores.
        int8: Run quantized convolutions with int8 kernels.
        onednn: Use oneDNN; programs in Paddle-Lite's form only run without it.

    Attributes:
        inputs: Names of the inputs.
        outputs: Names of the outputs, in the order of the program.
        batch: Number of images that the program was made for; None for any.

    Raises:
        ExportError: The files cannot be loaded.
    """

    def __init__(
        self,
        stem: str | Path,
        threads: int | None = None,
        int8: bool = False,
        onednn: bool = True,
    ) -> None:
        try:
            program = _read_program(Path(f"{stem}.pdmodel"))
            files = (f"{stem}.pdmodel", f"{stem}.pdiparams" if _has_parameters(program) else "")
            config = _configured(files, threads or os.cpu_count() or 1, int8, onednn)
            with silent_streams():
                self._predictor = inference.create_predictor(config)
        except (RuntimeError, ValueError, LookupError, OSError) as error:
            raise ExportError(
                f"'{stem}.pdmodel' and its parameters cannot be loaded: {engine_reason(error)}"
            ) from error
        self.inputs: list[str] = list(self._predictor.get_input_names())
        self.outputs: list[str] = list(self._predictor.get_output_names())
        variables = {name: program.block(0).find_var(name.encode()) for name in self.inputs}
        self._types = {name: convert_dtype(one.dtype()) for name, one in variables.items()}
        shapes = [list(one.shape()) for one in variables.values()]
        self.batch: int | None = next(
            (shape[0] for shape in shapes if shape and shape[0] > 0), None
        )

    @classmethod
    def of(
        cls, save: Callable[[Path], object], folder: Path | None = None, **settings: Any
    ) -> Engine:
        """Load a program from temporary files, which are then deleted.

        Args:
            save: Writes the program to a path without suffix.
            folder: Where the files are meanwhile; by default the system's temporary folder.
            settings: Of the engine.
        """
        with tempfile.TemporaryDirectory(prefix="slim_det_engine_", dir=folder) as work:
            stem = Path(work) / "model"
            save(stem)
            return cls(stem, **settings)

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once.

        Args:
            feeds: At least the inputs of the program, by name; converted to their declared types.

        Returns:
            Its outputs by name.
        """
        self.prepared(feeds)()
        return {
            name: self._predictor.get_output_handle(name).copy_to_cpu() for name in self.outputs
        }

    def prepared(self, feeds: Mapping[str, np.ndarray]) -> Callable[[], None]:
        """Copy the inputs now; the result runs them without reading outputs, to be timed."""
        for name, kind in self._types.items():
            value = np.ascontiguousarray(np.asarray(feeds[name]), dtype=kind)
            self._predictor.get_input_handle(name).copy_from_cpu(value)
        return self._run

    def _run(self) -> None:
        try:
            self._predictor.run()
        except (RuntimeError, ValueError, LookupError, SystemError) as error:
            raise ExportError(
                f"Paddle Inference cannot run the program: {engine_reason(error)}"
            ) from error


def _configured(files: tuple[str, str], threads: int, int8: bool, onednn: bool) -> inference.Config:
    """The settings that make a model fast on a CPU."""
    config = inference.Config(*files)
    config.disable_gpu()
    if onednn:
        config.enable_mkldnn()
    else:
        config.disable_mkldnn()
    if int8:
        config.enable_mkldnn_int8()
    config.set_cpu_math_library_num_threads(threads)
    config.enable_memory_optim()
    config.disable_glog_info()
    return config


def _read_program(path: Path) -> core.ProgramDesc:
    """Read a program in Python first: the engine crashes the process on a file that is not one."""
    program = core.ProgramDesc(path.read_bytes())
    if not program.num_blocks():
        raise ValueError("the file is empty")
    return program


def _has_parameters(program: core.ProgramDesc) -> bool:
    """Whether a program reads a file of parameters; Paddle cannot load one that holds none."""
    variables = program.block(0).all_vars()
    return any(v.persistable() and v.name() not in ("feed", "fetch") for v in variables)


@functools.cache
def cpu_has_int8() -> bool:
    """Whether oneDNN has instructions for int8 products; False without Linux's ``/proc/cpuinfo``.

    ``ONEDNN_MAX_CPU_ISA``, or ``DNNL_MAX_CPU_ISA``, may forbid instructions that the CPU has.
    """
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA", "")
    instructions = _INT8_WITHIN.get(limit.lower(), INT8_INSTRUCTIONS)
    try:
        lines = _CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    flags = next((line for line in lines if line.startswith("flags")), "").split()
    return any(name in flags for name in instructions)


@contextlib.contextmanager
def silent_streams() -> Iterator[None]:
    """Drop what C++ prints to both standard streams; its int8 passes announce each step there."""
    _flush_streams()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    saved: dict[int, int] = {}
    try:
        for number in (1, 2):
            with contextlib.suppress(OSError):  # closed: nothing to keep clean
                saved[number] = os.dup(number)
                os.dup2(nowhere, number)
        yield
    finally:
        _flush_streams()  # what C still holds would appear later
        for number, original in saved.items():
            os.dup2(original, number)
            os.close(original)
        os.close(nowhere)


def _flush_streams() -> None:
    """Write out what Python and C hold back."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and not stream.closed:
            stream.flush()
    ctypes.CDLL(None).fflush(None)
