"""PaddleDetection's keys of an export: honoured, or refused by name in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slim_det.core.errors import ConfigError
from slim_det.deploy.export_keys import check_export_keys, fuses_batch_norm
from slim_det.graph.program import DeployProgram
from slim_det.training.config import apply_overrides
from tests.commands import Outcome, done, files_below

DEFAULTS = {"post_process": True, "nms": True, "benchmark": False, "fuse_conv_bn": False}


@pytest.mark.parametrize(
    ("cfg", "fused"),
    [
        ({}, False),
        ({"export": None}, False),
        ({"export": DEFAULTS}, False),
        ({"export": {**DEFAULTS, "fuse_conv_bn": True}}, True),
    ],
)
def test_keys_that_are_honoured(cfg: dict[str, Any], fused: bool) -> None:
    check_export_keys(cfg)
    assert fuses_batch_norm(cfg) is fused


@pytest.mark.parametrize(
    ("override", "phrase"),
    [
        (
            "export.nms=False",
            "export.nms: false is not supported; expected true: an artifact is",
        ),
        ("export.post_process=false", "export.post_process: false is not supported"),
        ("export.benchmark=True", "export.benchmark: true is not supported; expected false: an"),
        ("export.benchmark=1", "export.benchmark: 1 is not valid; expected true or false"),
        ("export.nsm=false", "export: unknown key 'nsm'; did you mean 'nms'?"),
        ("export=all", "export: expected a mapping of keys, found 'all'"),
    ],
)
def test_keys_that_are_refused(tiny_cfg: Any, override: str, phrase: str) -> None:
    apply_overrides([override])
    with pytest.raises(ConfigError) as caught:
        check_export_keys(tiny_cfg)
    assert phrase in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("command", ["export", "quantize"])
def test_command_that_is_refused(
    cli: Callable[..., Outcome], tiny: Path, unpruned: Path, tmp_path: Path, command: str
) -> None:
    folders = ("--output_dir", tmp_path / "out")
    run = cli(command, "-c", tiny, *folders, "-o", f"weights={unpruned}", "export.nms=False")
    assert run.code == 2 and "export.nms: false is not supported" in run.err
    assert len(run.err.splitlines()) == 1 and files_below(tmp_path) == {}


def test_batch_norm_is_folded(
    cli: Callable[..., Outcome], tiny: Path, unpruned: Path, tmp_path: Path
) -> None:
    """Into a float model too, which is compared with the model like any other."""
    flags = ("-o", f"weights={unpruned}", "export.fuse_conv_bn=true")
    run = done(cli("export", "-c", tiny, "--output_dir", tmp_path, *flags))
    assert "Paddle Inference agrees on 6 images" in run.out
    program = DeployProgram.load(tmp_path / "tiny" / "model")
    assert "batch_norm" not in {op.type for op in program.ops}
    artifact = ("--artifact", tmp_path / "tiny")
    done(cli("verify", "-c", tiny, *artifact, "--eval_images", 2, *flags[:2]))
