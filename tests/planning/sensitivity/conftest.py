"""One thin detector, and what an analysis of it needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from slim_det.compress.prune.groups import ModelGroups, find_groups
from slim_det.graph.trace import Trace, trace_detector
from slim_det.training import session
from slim_det.training.config import load_config
from tests.support import restored_config
from tests.trained import Detector, thin_detector


@pytest.fixture(scope="session")
def detector(
    tmp_path_factory: pytest.TempPathFactory, tiny: Path, shapes: Path, ppdet_registered: None
) -> Detector:
    """A detector of 18 head groups on six images; no test changes it."""
    return thin_detector(tmp_path_factory.mktemp("thin") / "detector", tiny, shapes)


@pytest.fixture(scope="session")
def traced_detector(detector: Detector) -> tuple[Any, Trace, ModelGroups]:
    """Its model with weights, operators and groups."""
    with restored_config():
        cfg = load_config(detector.config)
        model = session.model_with_weights(cfg, cfg.weights)
        trace = trace_detector(model, (96, 96))
    return model, trace, find_groups(model, trace)
