"""The pruner's settings that need images, where there are none or all is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from slim_det.compress.prune.pruner import FROM_IMAGES, Pruner
from slim_det.core.errors import ConfigError
from tests.compress.prune.small_net import SmallNet, traced


@pytest.mark.parametrize(
    ("settings", "needed"),
    [
        ({}, False),
        ({"criterion": "fpgm", "calibration": {"images": 3}}, False),
        ({"criterion": "elimination"}, True),
        ({"criterion": "taylor"}, True),
        ({"repair": "least_squares"}, True),
    ],
)
def test_which_settings_need_images(settings: dict[str, Any], needed: bool) -> None:
    assert Pruner(pruned_ratios=0.5, **settings).needs_images is needed


@pytest.mark.parametrize("repair", ["least squares", "ridge", False, 1])
def test_repairs_that_do_not_exist(repair: Any) -> None:
    with pytest.raises(ConfigError, match=r"Pruner\.repair: .* is not valid; expected least_squar"):
        Pruner(pruned_ratios=0.5, repair=repair)


@pytest.mark.parametrize("criterion", FROM_IMAGES)
def test_a_criterion_that_cannot_be_read_from_weights(criterion: str) -> None:
    """It can be counted what it will remove."""
    net = SmallNet()
    pruner = Pruner(criterion=criterion, pruned_ratios={"stem": 0.5})
    with pytest.raises(ConfigError, match=f"criterion '{criterion}' needs images, which are not"):
        pruner.plan(net, *traced(net))
    assert len(pruner.plan_for_costs(net, *traced(net)).groups["stem"]["kept"]) == 2


@pytest.mark.parametrize(
    "settings",
    [
        {"criterion": "elimination"},
        {"criterion": "taylor"},
        {"criterion": "taylor", "repair": "least_squares"},
        {"repair": "least_squares"},
    ],
)
def test_a_command_without_images(settings: dict[str, Any]) -> None:
    """It is refused before anything is changed."""
    net = SmallNet()
    before = net.stem.weight.numpy()
    pruner = Pruner(pruned_ratios={"stem": 0.5}, **settings)
    with pytest.raises(ConfigError, match="images are needed, and this command reads none"):
        pruner.cut(net, *traced(net))
    assert np.array_equal(net.stem.weight.numpy(), before)


def test_given_scores_decide() -> None:
    """The lowest go: units 1 and 2 of four; it is asked for as many as will be removed."""
    net, asked = SmallNet(), []

    def scores(group: Any, count: int) -> np.ndarray:
        asked.append((group.name, count))
        return np.array([np.inf, 0.0, 1.0, np.inf])

    plan = Pruner(criterion="elimination", pruned_ratios={"stem": 0.5}).plan(
        net, *traced(net), scores=scores
    )
    assert plan.groups["stem"]["kept"] == [0, 3]
    assert asked == [("stem", 2)]
    assert plan.settings["criterion"] == "elimination"
