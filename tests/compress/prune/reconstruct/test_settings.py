"""Settings of calibration: defaults, and one line for what cannot be."""

from __future__ import annotations

from typing import Any

import pytest

from slim_det.compress.prune.reconstruct.settings import Calibration, read_calibration
from slim_det.core.errors import ConfigError

DEFAULTS = {"images": 256, "folder": None, "positions": 8192, "ridge": 1e-4}


@pytest.mark.parametrize("values", [None, {}])
def test_nothing_is_given(values: Any) -> None:
    assert read_calibration(values).as_dict() == DEFAULTS


def test_all_is_given() -> None:
    values = {"images": 1, "folder": "photos", "positions": 7, "ridge": 1}
    assert read_calibration(values) == Calibration(1, "photos", 7, 1.0)


def test_the_way_yaml_reads_a_power_of_ten() -> None:
    """YAML 1.1 reads `1e-4` as text."""
    assert read_calibration({"ridge": "1e-4"}).ridge == 1e-4


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"image": 3}, "Pruner.calibration: unknown key 'image'; did you mean 'images'?"),
        ([256], "Pruner.calibration: expected a mapping of keys, found [256]"),
        (256, "Pruner.calibration: expected a mapping of keys, found 256"),
        ({"images": 0}, "Pruner.calibration.images: 0 is not valid; expected a whole number >= 1"),
        ({"images": 2.0}, "Pruner.calibration.images: 2.0 is not valid"),
        ({"images": True}, "Pruner.calibration.images: True is not valid"),
        ({"positions": -1}, "Pruner.calibration.positions: -1 is not valid"),
        ({"ridge": 0}, "Pruner.calibration.ridge: 0 is not valid; expected a number from 1e-8 to"),
        ({"ridge": 1e-9}, "Pruner.calibration.ridge: 1e-09 is not valid"),
        ({"ridge": 1.5}, "Pruner.calibration.ridge: 1.5 is not valid"),
        ({"ridge": float("nan")}, "Pruner.calibration.ridge: nan is not valid"),
        ({"ridge": "small"}, "Pruner.calibration.ridge: 'small' is not valid"),
        ({"folder": ""}, "Pruner.calibration.folder: '' is not valid; expected a folder"),
        ({"folder": 3}, "Pruner.calibration.folder: 3 is not valid; expected a folder"),
    ],
)
def test_what_cannot_be(values: Any, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_calibration(values)
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)
