"""Writes an artifact's files for Paddle-Lite: the converter's input program and the `.nb` files."""

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
    "Paddle-Lite's x86 kernels compute int8 convolutions incorrectly: use this file on ARM, and "
    "Paddle Inference on x86"
)
TIMEOUT_S = 1800


@dataclass(frozen=True)
class Converter:
    """Paddle-Lite's converter.

    Attributes:
        program: A Python interpreter that has ``paddlelite``, or an ``opt`` executable.
        is_python: Whether it is a Python interpreter.
    """

    program: str
    is_python: bool

    def convert(self, stem: Path, out_stem: Path, target: str, fp16: bool) -> str | None:
        """Convert ``<stem>.pdmodel`` and ``.pdiparams`` to ``<out_stem>.nb``.

        Returns:
            The converter's version, if it reports one.

        Raises:
            ExportError: It cannot be started, fails, or writes no file.
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
                f"Paddle-Lite's converter '{self.program}' wrote no .nb file for {target}: "
                f"{_last_line(out) or 'it printed nothing'}"
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
    """A request for Paddle-Lite files.

    Attributes:
        targets: One or more of `TARGETS`.
        fp16: Whether to use half precision on ARM.
        converter: The converter; None if there is none.
    """

    targets: tuple[str, ...]
    fp16: bool = False
    converter: Converter | None = None


def opt_command(program: str, stem: Path, out_stem: Path, target: str, fp16: bool) -> list[str]:
    """Command line that runs the converter ``opt`` for one target."""
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
        The converter; None if ``path`` is None and this interpreter has no ``paddlelite``.

    Raises:
        ExportError: ``path`` does not exist or is not executable.
    """
    if path is None:
        return Converter(sys.executable, True) if has_paddlelite() else None
    program = shutil.which(path)
    if program is None:
        raise ExportError(
            f"--paddle_lite_opt '{path}' is not an executable program; expected a Python "
            "interpreter that has paddlelite, or Paddle-Lite's opt"
        )
    return Converter(program, Path(path).name.startswith("python"))


def write_lite(
    artifact_dir: str | Path, write_program: Callable[[Path], None], form: str, request: LiteRequest
) -> dict[str, Any]:
    """Write ``<artifact>/lite`` atomically and add it to the artifact's manifest.

    Args:
        artifact_dir: A published artifact.
        write_program: Writes the converter's input program to a path without suffix.
        form: ``float32``, or ``int8_in_float32`` for integers that are stored as floats.
        request: What to write.

    Returns:
        The manifest entry: ``targets`` (name -> ``file``, ``size_mb``, ``sha256``), ``form``,
        ``fp16``, ``opt_version``, ``program_sha256``.

    Raises:
        ExportError: The artifact cannot be read, or a conversion fails; the artifact is then
            unchanged.
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
    """Log what was written, or the commands that would write it."""
    for target in found["targets"].values():
        note = f"; {target['note']}" if "note" in target else ""
        logger.info("wrote %s (%.2f MB)%s", folder.parent / target["file"], target["size_mb"], note)
    if request.converter is None:
        logger.info("no .nb file was written: this interpreter has no paddlelite; convert with")
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
    """Run a program without showing its output, and return its stdout.

    Args:
        command: Program and arguments.
        what: Name of the program, for error messages.

    Raises:
        ExportError: It cannot be started, fails, or takes more than half an hour.
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
    code = done.returncode
    if code:
        how = f"exit code {code}" if code > 0 else f"signal {-code}"
        reason = _last_line(done.stderr) or _last_line(done.stdout) or "it printed nothing"
        raise ExportError(f"{what} failed ({how}): {reason}")
    return done.stdout


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][-200:] if lines else ""
