"""Writes what Paddle-Lite deploys: the program that its converter reads, and the `.nb` files."""

from __future__ import annotations

import importlib.util
import json
import logging
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slim_det.core.errors import ExportError
from slim_det.core.files import sha256_of, staged_folder, write_json
from slim_det.deploy.predictor import MANIFEST_FILE, MODEL_FILE, PARAMS_FILE

logger = logging.getLogger("slim_det")

LITE_DIR = "lite"
TARGETS = ("arm", "x86")
RUNNER = Path(__file__).with_name("runner.py")
X86_INT8_NOTE = (
    "Paddle-Lite's x86 kernels compute int8 convolutions wrongly: run this file on ARM, and "
    "Paddle Inference on x86"
)
TIMEOUT_S = 1800


@dataclass(frozen=True)
class Converter:
    """How Paddle-Lite's converter is started.

    Attributes:
        program: A Python interpreter that has ``paddlelite``, or an ``opt`` executable.
        is_python: Which of both.
    """

    program: str
    is_python: bool

    def convert(self, stem: Path, out_stem: Path, target: str, fp16: bool) -> str | None:
        """Convert ``<stem>.pdmodel`` and ``.pdiparams`` to ``<out_stem>.nb``.

        Returns:
            The converter's version, where it says so.

        Raises:
            ExportError: It cannot be started, fails, or leaves no file.
        """
        model, params = stem.with_suffix(".pdmodel"), stem.with_suffix(".pdiparams")
        if self.is_python:
            command = [self.program, str(RUNNER), "convert", str(model), str(params)]
            command += [str(out_stem), target, str(int(fp16))]
        else:
            command = opt_command(self.program, stem, out_stem, target, fp16)
        out = run_quietly(command, f"Paddle-Lite's converter '{self.program}'")
        if not out_stem.with_name(out_stem.name + ".nb").is_file():
            raise ExportError(
                f"Paddle-Lite's converter '{self.program}' made no .nb file for {target}: "
                f"{_last_line(out) or 'it said nothing'}"
            )
        version = _last_line(out) if self.is_python else self._stated_version()
        return version if re.fullmatch(r"v?\d+\.\S+", version) else None

    def _stated_version(self) -> str:
        try:
            return _last_line(run_quietly([self.program, "--version"], "its version"))
        except ExportError:
            return ""


@dataclass(frozen=True)
class LiteRequest:
    """What is to be made.

    Attributes:
        targets: Of `TARGETS`.
        fp16: Half precision on ARM.
        converter: None where there is none.
    """

    targets: tuple[str, ...]
    fp16: bool = False
    converter: Converter | None = None


def opt_command(program: str, stem: Path, out_stem: Path, target: str, fp16: bool) -> list[str]:
    """The command line of the converter ``opt`` for one target."""
    command = [
        program,
        f"--model_file={stem.with_suffix('.pdmodel')}",
        f"--param_file={stem.with_suffix('.pdiparams')}",
        f"--optimize_out={out_stem}",
        f"--valid_targets={target}",
    ]
    return command + (["--enable_fp16=true"] if fp16 else [])


def has_paddlelite() -> bool:
    """Whether this interpreter has Paddle-Lite's converter and x86 runtime."""
    return importlib.util.find_spec("paddlelite") is not None


def find_converter(path: str | None = None) -> Converter | None:
    """Find Paddle-Lite's converter.

    Args:
        path: An interpreter that has ``paddlelite`` (its name begins with "python"), or an
            ``opt`` executable; None for this interpreter.

    Returns:
        None where none is named and this interpreter has no ``paddlelite``.

    Raises:
        ExportError: What is named is not there or cannot be run.
    """
    if path is None:
        return Converter(sys.executable, True) if has_paddlelite() else None
    program = shutil.which(path)
    if program is None:
        raise ExportError(
            f"--paddle_lite_opt '{path}' is not a program that can be run; expected a Python "
            "interpreter that has paddlelite, or Paddle-Lite's opt"
        )
    return Converter(program, Path(path).name.startswith("python"))


def write_lite(
    artifact_dir: str | Path, write_program: Callable[[Path], None], form: str, request: LiteRequest
) -> dict[str, Any]:
    """Write ``<artifact>/lite``, completely or not at all, and enter it in the artifact's manifest.

    Args:
        artifact_dir: A published artifact.
        write_program: Writes the program for the converter; is given the files without suffix.
        form: ``float32``, or ``int8_in_float32`` for integers that are stored as floats.
        request: What to make.

    Returns:
        What was entered: ``targets`` (name -> ``file``, ``size_mb``, ``sha256``), ``form``,
        ``fp16``, ``opt_version``, ``program_sha256``.

    Raises:
        ExportError: The artifact cannot be read, or a conversion fails; the artifact is then as
            it was.
    """
    artifact = Path(artifact_dir)
    manifest = _read_manifest(artifact)
    target_dir = artifact / LITE_DIR
    with staged_folder(target_dir, beside=artifact) as staging:
        write_program(staging / "model")
        found = _convert_all(staging, form, request)
    write_json(artifact / MANIFEST_FILE, {**manifest, "lite": found})
    _report(target_dir, found, request)
    return found


def _convert_all(folder: Path, form: str, request: LiteRequest) -> dict[str, Any]:
    targets: dict[str, dict[str, Any]] = {}
    version = None
    converter = request.converter
    for target in request.targets:
        if converter is None:
            break
        out_stem = folder / f"model_{target}"
        fp16 = request.fp16 and target == "arm"
        version = converter.convert(folder / "model", out_stem, target, fp16)
        file = out_stem.with_name(out_stem.name + ".nb")
        targets[target] = {
            "file": f"{LITE_DIR}/{file.name}",
            "size_mb": file.stat().st_size / 1e6,
            "sha256": sha256_of(file),
        }
        if target == "x86" and form != "float32":
            targets[target]["note"] = X86_INT8_NOTE
    return {
        "targets": targets,
        "form": form,
        "fp16": request.fp16,
        "opt_version": version,
        "program_sha256": {name: sha256_of(folder / name) for name in (MODEL_FILE, PARAMS_FILE)},
    }


def _report(folder: Path, found: dict[str, Any], request: LiteRequest) -> None:
    """What was made, or how to make it."""
    for manifest in found["targets"].values():
        note = f"; {manifest['note']}" if "note" in manifest else ""
        logger.info(
            "wrote %s (%.2f MB)%s", folder.parent / manifest["file"], manifest["size_mb"], note
        )
    if request.converter is None:
        logger.info("no .nb file was made: this interpreter has no paddlelite; convert with")
        for target in request.targets:
            fp16 = request.fp16 and target == "arm"
            out_stem = folder / f"model_{target}"
            command = opt_command("paddle_lite_opt", folder / "model", out_stem, target, fp16)
            logger.info("  %s", shlex.join(command))


def _read_manifest(artifact: Path) -> dict[str, Any]:
    path = artifact / MANIFEST_FILE
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        return dict(manifest)
    except (OSError, ValueError, TypeError) as error:
        raise ExportError(f"'{path}' cannot be read: {error}; export again") from error


def run_quietly(command: list[str], what: str) -> str:
    """Run a program to its end.

    Args:
        command: Program and arguments.
        what: Its name, for the error.

    Returns:
        What it wrote to stdout.

    Raises:
        ExportError: It cannot be started, ends with an error, or takes half an hour.
    """
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ExportError(f"{what} cannot be run: {error}") from error
    if done.returncode:
        how = f"exit code {done.returncode}"
        if done.returncode < 0:
            how = f"signal {-done.returncode}"
        reason = _last_line(done.stderr) or _last_line(done.stdout) or "it said nothing"
        raise ExportError(f"{what} failed ({how}): {reason}")
    return done.stdout


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][-200:] if lines else ""
