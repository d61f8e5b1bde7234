"""Several cuts of one detector: each is what the pruner alone would have made."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest

from slim_det.compress.prune.cutting import cut_copies
from slim_det.compress.prune.groups import find_groups
from slim_det.compress.prune.plan import plan_of
from slim_det.compress.prune.pruner import Pruner
from slim_det.compress.prune.reconstruct.reconstruction import Reconstruction
from slim_det.graph.trace import trace_detector
from slim_det.training import session
from slim_det.training.config import load_config
from tests.support import restored_config

FIRST, LAST = "neck.yolo_block.2.conv_module.route", "neck.yolo_block.2.tip"
CUTS = [{FIRST: 0.5, LAST: 0.25}, {LAST: 0.5}]
"""The second one changes fewer layers, and more channels of one group."""

CALIBRATION = {"images": 4, "positions": 200}


class Setting:
    """A configuration with weights, and everything that is traced."""

    def __init__(self, config: Path, weights: Path) -> None:
        self.cfg = load_config(config, [f"weights={weights}"])
        self.model = self.copy()
        self.trace = trace_detector(self.model, (96, 96))
        self.groups = find_groups(self.model, self.trace)

    def copy(self) -> paddle.nn.Layer:
        return session.model_with_weights(self.cfg, self.cfg.weights)

    def pruner(self, ratios: Any = 0.5, **more: Any) -> Pruner:
        return Pruner(pruned_ratios=ratios, calibration=CALIBRATION, **more)

    def cuts(self, **more: Any) -> Iterator[paddle.nn.Layer]:
        return cut_copies(
            self.pruner(**more), self.model, self.trace, self.groups, CUTS, self.copy, self.cfg
        )

    def alone(self, ratios: dict[str, float], **more: Any) -> paddle.nn.Layer:
        pruner = self.pruner(ratios, **more)
        return pruner.cut(self.copy(), self.trace, self.groups, cfg=self.cfg)


@pytest.fixture(scope="module")
def setting(tiny: Path, unpruned: Path, ppdet_registered: None) -> Iterator[Setting]:
    with restored_config():
        yield Setting(tiny, unpruned)


def assert_same_cut(setting: Setting, found: paddle.nn.Layer, wanted: paddle.nn.Layer) -> None:
    """Plan and weights; the model that was copied is as it was."""
    plan, other = plan_of(found), plan_of(wanted)
    assert plan.groups == other.groups and plan.settings == other.settings
    assert plan.cost == other.cost and not plan.differs(other)
    state = found.state_dict()
    for name, value in wanted.state_dict().items():
        assert np.allclose(state[name].numpy(), value.numpy(), rtol=1e-3, atol=1e-5), name
    assert plan_of(setting.model) is None


def test_each_is_that_of_the_pruner_alone(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One observation for both cuts, and for each group one order, as long as the longest."""
    seen: list[Any] = []
    observe, eliminate = Reconstruction.observe, Reconstruction.eliminate

    def observing(self: Any, *arguments: Any) -> None:
        seen.append("observe")
        observe(self, *arguments)

    def eliminating(self: Any, group: Any, count: int) -> Any:
        seen.append((group.name, count / len(group.units)))
        return eliminate(self, group, count)

    monkeypatch.setattr(Reconstruction, "observe", observing)
    monkeypatch.setattr(Reconstruction, "eliminate", eliminating)
    settings = {"criterion": "elimination", "repair": "least_squares"}
    before = {name: value.numpy().copy() for name, value in setting.model.state_dict().items()}
    models = list(setting.cuts(**settings))
    monkeypatch.undo()
    assert seen == ["observe", (FIRST, 0.5), (LAST, 0.5)]
    layers = []
    for ratios, found in zip(CUTS, models):
        wanted = setting.alone(ratios, **settings)
        assert_same_cut(setting, found, wanted)
        repaired, other = (
            [(one["weight"], one["note"]) for one in plan_of(model).repair["layers"]]
            for model in (found, wanted)
        )
        assert repaired == other
        layers.append(repaired)
    assert len(layers[0]) > len(layers[1]) > 0
    for name, value in setting.model.state_dict().items():
        assert np.array_equal(value.numpy(), before[name]), name


def test_without_images(setting: Setting) -> None:
    """Every copy has the random numbers of a pruner of its own."""
    settings = {"criterion": "random", "seed": 3}
    for ratios, found in zip(CUTS, setting.cuts(**settings)):
        assert_same_cut(setting, found, setting.alone(ratios, **settings))
