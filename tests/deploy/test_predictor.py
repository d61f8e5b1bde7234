"""Folders that are, or are not, an exported model."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest
import yaml

from slim_det.core.errors import ExportError
from slim_det.deploy.predictor import PREDICTOR_FILES, Predictor, infer_settings


def write_settings(folder: Path, content: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "infer_cfg.yml").write_text(
        content if isinstance(content, str) else yaml.safe_dump(content)
    )
    return folder


@pytest.mark.parametrize("missing", PREDICTOR_FILES)
def test_file_that_is_missing(tmp_path: Path, missing: str) -> None:
    for name in set(PREDICTOR_FILES) - {missing}:
        (tmp_path / name).write_text("")
    with pytest.raises(ExportError, match=f"has no {missing}; expected a folder written by export"):
        Predictor(tmp_path)


@pytest.mark.parametrize("name", ["model.pdmodel", "model.pdiparams"])
def test_file_that_was_changed(tmp_path: Path, name: str) -> None:
    """Paddle itself would crash on some; the settings may be edited."""
    contents = {name: f"content of {name}" for name in PREDICTOR_FILES}
    sums = {n: hashlib.sha256(text.encode()).hexdigest() for n, text in contents.items()}
    for file, text in {**contents, "slim_det.json": json.dumps({"sha256": sums})}.items():
        (tmp_path / file).write_text(text)
    (tmp_path / "infer_cfg.yml").write_text("draw_threshold: 0.1")
    (tmp_path / name).write_text("cut")
    with pytest.raises(ExportError, match=f"{name} is not the file that was exported"):
        Predictor(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"sha256": {}}'])
def test_checksums_that_are_damaged(tmp_path: Path, text: str) -> None:
    for name in (*PREDICTOR_FILES, "slim_det.json"):
        (tmp_path / name).write_text(text)
    with pytest.raises(ExportError, match=r"slim_det.json' cannot be read"):
        Predictor(tmp_path)


def test_empty_model_of_another_program(tmp_path: Path) -> None:
    """Without checksums Paddle refuses, with our message."""
    for name in PREDICTOR_FILES:
        (tmp_path / name).write_text("")
    with pytest.raises(ExportError, match="cannot be loaded"):
        Predictor(tmp_path)


@pytest.mark.parametrize("content", ["a: [", "text", {}, {"Preprocess": []}, {"label_list": []}])
def test_settings_that_are_not_of_an_artifact(tmp_path: Path, content: object) -> None:
    with pytest.raises(ExportError, match=r"infer_cfg.yml'(: \w+ is missing| cannot be read)"):
        infer_settings(write_settings(tmp_path, content))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"Preprocess": "text"}, "Preprocess: 'text' is not valid; expected a list of steps"),
        ({"Preprocess": ["text"]}, "Preprocess: ['text'] is not valid; expected a list of steps"),
        ({"Preprocess": [{"a": 1}]}, "Preprocess: a step has no type: {'a': 1}"),
        ({"Preprocess": [{"type": "Resize", "target_size": 96}]}, "target_size 96 is not"),
        ({"Preprocess": [{"type": "Resize", "target_size": [96, 0]}]}, "[96, 0] is not [height"),
        ({"label_list": [1]}, "label_list: [1] is not valid; expected a list of class names"),
    ],
)
def test_settings_that_are_not_valid(tmp_path: Path, changes: dict, said: str) -> None:
    content = {"Preprocess": [], "label_list": ["a"], **changes}
    with pytest.raises(ExportError, match=re.escape(said)):
        infer_settings(write_settings(tmp_path, content))


def test_settings_cannot_run_code(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    text = f"Preprocess: !!python/object/apply:os.system ['touch {mark}']\nlabel_list: []\n"
    with pytest.raises(ExportError):
        infer_settings(write_settings(tmp_path, text))
    assert not mark.exists()


def test_settings_of_an_artifact(tmp_path: Path) -> None:
    steps = [{"type": "Resize", "target_size": [96, 64]}, {"type": "Permute"}]
    content = {"Preprocess": steps, "label_list": ["cat"], "arch": "YOLO"}
    assert infer_settings(write_settings(tmp_path, content)) == content
