"""A configuration inside a configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from slim_det.training.config import load_config
from slim_det.training.config_scope import fresh_config as fresh_scope
from slim_det.training.config_scope import plain_copy


def test_inside_only_what_is_registered(fresh_config: Any, tiny: Path) -> None:
    """Defaults as declared, whatever the outer file says."""
    load_config(tiny)
    with fresh_scope() as inner:
        assert inner is fresh_config
        assert "architecture" not in inner and "filename" not in inner
        assert inner["MobileNet"]["scale"] == 1 and dict(inner["MobileNet"]) == {}
    assert fresh_config["MobileNet"]["scale"] == 0.25


@pytest.mark.parametrize("fails", [False, True])
def test_outside_is_given_back(fresh_config: Any, tiny: Path, fails: bool) -> None:
    """Values, the order of keys, and every object, down to the settings of components."""
    load_config(tiny)
    before, objects = plain_copy(fresh_config), list(map(id, fresh_config.values()))
    try:
        with fresh_scope() as inner:
            inner["architecture"], inner["own"] = "Other", 3
            inner["MobileNet"]["scale"] = 0.5
            inner["YOLOv3Head"].update(anchors=[[1, 1]])
            del inner["Pruner"]
            if fails:
                raise ValueError
    except ValueError:
        assert fails
    assert plain_copy(fresh_config) == before and list(fresh_config) == list(before)
    assert list(map(id, fresh_config.values())) == objects


def test_scopes_may_be_nested(fresh_config: Any) -> None:
    fresh_config["epoch"] = 1
    with fresh_scope():
        fresh_config["epoch"] = 2
        with fresh_scope():
            assert "epoch" not in fresh_config
        assert fresh_config["epoch"] == 2
    assert fresh_config["epoch"] == 1


class RegisteredLate:
    """Of a module that is imported inside a scope."""

    def __init__(self, size: int = 7) -> None:
        self.size = size


def test_what_is_registered_inside_stays(fresh_config: Any) -> None:
    """A module is imported once, and would not register again."""
    from ppdet.core.workspace import create, register

    try:
        with fresh_scope():
            register(RegisteredLate)
            fresh_config["RegisteredLate"]["size"] = 9
        assert create("RegisteredLate").size == 7
    finally:
        fresh_config.pop("RegisteredLate", None)


def test_plain_copy_of_nothing() -> None:
    assert plain_copy({}) == {}


def test_plain_copy_has_defaults_and_shares_nothing(fresh_config: Any, tiny: Path) -> None:
    copy = plain_copy(load_config(tiny, ["num_classes=4"]))
    assert type(copy) is dict and type(copy["YOLOv3Head"]) is dict
    assert copy["YOLOv3Head"]["num_classes"] == 4  # shared with the top level
    assert copy["YOLOv3Head"]["iou_aware"] is False  # a default
    copy["EvalReader"]["sample_transforms"][0]["Decode"]["x"] = 1
    copy["YOLOv3Head"]["anchors"][0][0] = -1
    assert fresh_config["EvalReader"]["sample_transforms"][0] == {"Decode": {}}
    assert fresh_config["YOLOv3Head"]["anchors"][0][0] == 20
