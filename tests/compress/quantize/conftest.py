"""The configuration of the drawn data set, for nets that need only its readers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def tiny_cfg(fresh_config: Any, tiny: Path) -> Any:
    """16 images to train on, 6 to evaluate, 96 pixels square."""
    from slim_det.training.config import load_config

    return load_config(tiny)
