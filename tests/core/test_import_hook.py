"""slim_det takes its places in ppdet in any order of imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import slim_det
from slim_det.core.import_hook import _PackageFinder, when_imported
from slim_det.core.script_overrides import script_overrides
from tests.commands import process_environment

# Prints which modules of slim_det ppdet's names lead to.
REPORT = """
from ppdet.core.workspace import global_config
import ppdet.engine.trainer as trainer, ppdet.slim as slim
print(
    global_config["Pruner"].pymodule.__name__,
    global_config["ScaledYOLOv3FPN"].pymodule.__name__,
    trainer.Checkpointer.__module__,
    trainer.load_weight.__module__,
    trainer.Trainer.export.__module__,
    slim.build_slim_model.__module__,
)
"""

EXPECTED = (
    "slim_det.compress.prune.pruner slim_det.detectors.yolov3.scaled_fpn "
    "slim_det.training.checkpoint_saver slim_det.training.checkpoint "
    "slim_det.deploy.trainer_export slim_det.training.ppdet_patches"
)


def run(code: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", code], env=process_environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    "first",
    [
        "import sys, slim_det; print('paddle' in sys.modules, 'ppdet' in sys.modules)",
        "import ppdet, slim_det",
        "import slim_det.training.config",
    ],
)
def test_order_of_imports(first: str) -> None:
    """slim_det first, ppdet first, or a module of slim_det that imports ppdet."""
    lines = run(first + REPORT)
    assert lines[-1] == EXPECTED
    if "sys" in first:
        assert lines[0] == "False False"


def test_ppdet_of_the_script_is_taken(tmp_path: Path) -> None:
    """A path that a script adds after importing slim_det decides."""
    own = tmp_path / "ppdet"
    own.mkdir()
    (own / "__init__.py").write_text("raise ImportError('the ppdet of the checkout')\n")
    code = f"""
import slim_det, sys
sys.path.insert(0, {str(tmp_path)!r})
try:
    import ppdet
except ImportError as error:
    print(error)
"""
    assert run(code)[-1] == "the ppdet of the checkout"


def test_installed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No matter how often slim_det is imported, before ppdet and after."""
    registered: list[int] = []
    monkeypatch.setattr(sys, "meta_path", [])
    modules = {name: m for name, m in sys.modules.items() if name.split(".")[0] != "ppdet"}
    monkeypatch.setattr(sys, "modules", modules)
    for _ in range(2):
        when_imported("ppdet", lambda: registered.append(1))
    assert len(sys.meta_path) == 1 and not registered
    sys.modules["ppdet"] = slim_det
    when_imported("ppdet", lambda: registered.append(1))
    assert registered == [1]


def test_other_packages_are_none_of_its_business() -> None:
    finder = _PackageFinder("ppdet", lambda: None)
    assert finder.find_spec("json", None) is None
    assert finder.find_spec("ppdet.engine", None) is None


def test_ppdet_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The import fails as it would without slim_det."""
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "path_importer_cache", {})
    assert _PackageFinder("ppdet", lambda: None).find_spec("ppdet", None) is None


def test_slim_file_of_a_script_may_be_overridden(
    fresh_config: Any, tiny: Path, unpruned: Path, r578: Path, tmp_path: Path
) -> None:
    """In `build_slim_model`, ppdet's `-o` has the last word."""
    import yaml
    from ppdet.slim import build_slim_model

    from slim_det.compress.prune.plan import plan_of
    from slim_det.training.config import load_config

    slim = tmp_path / "slim.yml"
    content = {**yaml.safe_load(r578.read_text()), "pretrain_weights": "https://no.such/x.pdparams"}
    slim.write_text(yaml.safe_dump(content))
    script_overrides[:] = [f"pretrain_weights={unpruned}.pdparams"]
    try:
        cfg = build_slim_model(load_config(tiny), str(slim))
    finally:
        script_overrides.clear()
    assert len(plan_of(cfg["model"]).groups) == 18
