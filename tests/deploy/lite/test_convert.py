"""The folder for Paddle-Lite is complete or absent, with any converter."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import paddle
import pytest
from paddle.static import InputSpec

from slim_det.cli.export_lite import add_lite_arguments, check_lite_arguments
from slim_det.core.errors import ConfigError, ExportError
from slim_det.core.files import sha256_of
from slim_det.deploy.lite import convert
from slim_det.deploy.lite.convert import (
    Converter,
    LiteRequest,
    find_converter,
    has_paddlelite,
    opt_command,
    write_lite,
)
from slim_det.graph.tracing import deployment_program
from tests.commands import files_below

OPT = """#!/bin/sh
echo "$@" >> {log}
if [ "$1" = --version ]; then echo v2.13-rc; exit 0; fi
for argument in "$@"; do
  case "$argument" in --optimize_out=*) out="${{argument#*=}}.nb";; esac
done
{action}
"""


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    folder = tmp_path / "out" / "detector"
    folder.mkdir(parents=True)
    (folder / "slim_det.json").write_text(json.dumps({"schema": "x", "sha256": {}}))
    return folder


@pytest.fixture
def opt(tmp_path: Path) -> Callable[[str], Converter]:
    """Make an ``opt`` that does what the shell says, and find it."""

    def make(action: str = 'printf nb > "$out"') -> Converter:
        path = tmp_path / "opt"
        path.write_text(OPT.format(log=tmp_path / "log", action=action))
        path.chmod(0o755)
        found = find_converter(str(path))
        assert found is not None and not found.is_python
        return found

    return make


def write_words(stem: Path) -> None:
    for suffix in (".pdmodel", ".pdiparams"):
        stem.with_suffix(suffix).write_text(suffix)


def test_both_targets(artifact: Path, opt: Callable[[str], Converter], tmp_path: Path) -> None:
    request = LiteRequest(("arm", "x86"), fp16=True, converter=opt())
    found = write_lite(artifact, write_words, "float32", request)
    assert sorted(p.name for p in (artifact / "lite").iterdir()) == [
        "model.pdiparams",
        "model.pdmodel",
        "model_arm.nb",
        "model_x86.nb",
    ]
    manifest = json.loads((artifact / "slim_det.json").read_text())
    assert manifest["lite"] == found and manifest["schema"] == "x"
    assert found["targets"]["arm"] == {
        "file": "lite/model_arm.nb",
        "size_mb": 2e-6,
        "sha256": sha256_of(artifact / "lite" / "model_arm.nb"),
    }
    assert (found["form"], found["fp16"], found["opt_version"]) == ("float32", True, "v2.13-rc")
    lines = [line for line in (tmp_path / "log").read_text().splitlines() if "model_file" in line]
    assert "--valid_targets=arm --enable_fp16=true" in lines[0]
    assert lines[1].endswith("--valid_targets=x86")  # half precision is for ARM
    assert [p.name for p in artifact.parent.iterdir()] == ["detector"]


def test_x86_file_of_an_int8_model_is_marked(
    artifact: Path, opt: Callable[[str], Converter], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="slim_det"):
        found = write_lite(
            artifact, write_words, "int8_in_float32", LiteRequest(("arm", "x86"), converter=opt())
        )
    assert (
        "incorrectly" in found["targets"]["x86"]["note"] and "note" not in found["targets"]["arm"]
    )
    assert "incorrectly" in caplog.text


def test_no_converter(artifact: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The program is there, and the command that converts it."""
    with caplog.at_level("INFO", logger="slim_det"):
        found = write_lite(artifact, write_words, "float32", LiteRequest(("arm",), True))
    assert found["targets"] == {} and found["opt_version"] is None
    assert (artifact / "lite" / "model.pdmodel").read_text() == ".pdmodel"
    stem = artifact / "lite" / "model"
    expected = opt_command("paddle_lite_opt", stem, stem.with_name("model_arm"), "arm", True)
    assert "no .nb file was written" in caplog.text and " ".join(expected) in caplog.text


@pytest.mark.parametrize(
    ("action", "phrase"),
    [
        ("echo first >&2; echo broken model >&2; exit 3", "failed (exit code 3): broken model"),
        ("echo all is well", "wrote no .nb file for arm: all is well"),
        ("kill -6 $$", "failed (signal 6)"),
        ('case "$out" in *x86*) exit 1;; esac; printf nb > "$out"', "failed (exit code 1)"),
    ],
)
def test_converter_that_fails(
    artifact: Path, opt: Callable[[str], Converter], action: str, phrase: str
) -> None:
    """One line, and nothing half-written, even where the first target went well."""
    request = LiteRequest(("arm", "x86"), converter=opt(action))
    before = files_below(artifact.parent)
    with pytest.raises(ExportError) as caught:
        write_lite(artifact, write_words, "float32", request)
    assert phrase in str(caught.value) and "\n" not in str(caught.value)
    assert files_below(artifact.parent) == before


def test_program_that_cannot_be_written(artifact: Path, opt: Callable[[str], Converter]) -> None:
    def fail(stem: Path) -> None:
        write_words(stem)
        raise ExportError("no integers")

    before = files_below(artifact.parent)
    with pytest.raises(ExportError, match="no integers"):
        write_lite(artifact, fail, "float32", LiteRequest(("arm",), converter=opt()))
    assert files_below(artifact.parent) == before


def test_earlier_files_are_replaced(artifact: Path, opt: Callable[[str], Converter]) -> None:
    write_lite(artifact, write_words, "float32", LiteRequest(("arm", "x86"), converter=opt()))
    write_lite(artifact, write_words, "float32", LiteRequest(("arm",), converter=opt()))
    assert not (artifact / "lite" / "model_x86.nb").exists()
    assert list(json.loads((artifact / "slim_det.json").read_text())["lite"]["targets"]) == ["arm"]


def test_folder_that_is_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"slim_det.json' cannot be read"):
        write_lite(tmp_path, write_words, "float32", LiteRequest(("arm",)))
    assert files_below(tmp_path) == {}


def test_converter_of_this_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "has_paddlelite", lambda: True)
    assert find_converter() == Converter(sys.executable, True)
    monkeypatch.setattr(convert, "has_paddlelite", lambda: False)
    assert find_converter() is None


def test_other_interpreter_is_told_from_opt(tmp_path: Path) -> None:
    """By its name."""
    for name, is_python in (("python", True), ("python3.9", True), ("opt_linux", False)):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
        found = find_converter(str(tmp_path / name))
        assert found == Converter(str(tmp_path / name), is_python)


def test_converter_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("")  # cannot be run
    for path in (tmp_path / "gone", tmp_path / "text", tmp_path):
        with pytest.raises(ExportError, match="--paddle_lite_opt .* is not an executable program"):
            find_converter(str(path))


def arguments(*flags: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_lite_arguments(parser)
    return parser.parse_args(flags)


@pytest.mark.parametrize(
    ("flags", "precision", "phrase"),
    [
        (["--fp16"], "float32", "--fp16 is for Paddle-Lite; add --lite"),
        (["--paddle_lite_opt", "x"], "float32", "--paddle_lite_opt is for Paddle-Lite"),
        (["--lite", "arm", "--fp16"], "int8", "quantized to int8; leave --fp16 out"),
        (["--lite", "x86", "--fp16"], "float32", "on ARM only; use --lite arm"),
        (
            ["--lite", "arm", "--paddle_lite_opt", "gone/opt"],
            "float32",
            "is not an executable program",
        ),
    ],
)
def test_flags_that_are_refused(flags: list[str], precision: str, phrase: str) -> None:
    with pytest.raises((ConfigError, ExportError), match=phrase):
        check_lite_arguments(arguments(*flags), precision)


@pytest.mark.parametrize("flags", [[], ["--lite", "both", "--fp16"], ["--lite", "x86"]])
def test_flags_that_are_fine(flags: list[str]) -> None:
    check_lite_arguments(arguments(*flags), "float32")


@pytest.mark.skipif(not has_paddlelite(), reason="paddlelite is not installed")
def test_real_converter(artifact: Path) -> None:
    """As a script of this interpreter, and refusing what is no program."""

    def write(stem: Path) -> None:
        net = paddle.nn.Conv2D(3, 8, 3)
        with deployment_program():
            spec = [InputSpec([None, 3, 8, 8], "float32", "image")]
            function = paddle.jit.to_static(net.forward, input_spec=spec, full_graph=True)
            paddle.jit.save(function, str(stem))

    request = LiteRequest(("arm", "x86"), converter=find_converter())
    found: dict[str, Any] = write_lite(artifact, write, "float32", request)
    assert list(found["targets"]) == ["arm", "x86"] and found["opt_version"] == "v2.13-rc"
    assert all(target["size_mb"] > 8e-4 for target in found["targets"].values())
    before = files_below(artifact.parent)
    with pytest.raises(ExportError, match="Paddle-Lite's converter '.*' failed") as caught:
        write_lite(artifact, write_words, "float32", request)
    assert "\n" not in str(caught.value) and files_below(artifact.parent) == before
