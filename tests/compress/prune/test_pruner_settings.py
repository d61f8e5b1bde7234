"""Settings of the pruner: what is taken if they are not given, and mistakes."""

from __future__ import annotations

from typing import Any

import pytest

from slim_det.compress.prune.pruner import Pruner
from slim_det.core.errors import ConfigError


@pytest.mark.parametrize(
    ("settings", "criterion"),
    [
        ({}, "l1_norm"),
        ({"repair": "least_squares"}, "elimination"),
        ({"repair": "least_squares", "criterion": "fpgm"}, "fpgm"),
    ],
)
def test_the_criterion_that_is_not_given(settings: dict[str, Any], criterion: str) -> None:
    """A repair needs images in any case, so they may choose the channels too."""
    assert Pruner(pruned_ratios=0.5, **settings).criterion == criterion


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"criterion": "l1norm"}, "unknown criterion 'l1norm'; did you mean 'l1_norm'"),
        ({"criterion": ["l1_norm"]}, "unknown criterion"),
        ({"align": 0}, "Pruner.align: 0 is not valid; expected a whole number >= 1"),
        ({"align": 2.0}, "Pruner.align: 2.0 is not valid"),
        ({"align": True}, "Pruner.align: True is not valid"),
        ({"align": "8"}, "Pruner.align: '8' is not valid"),
        ({"seed": -1}, "Pruner.seed: -1 is not valid; expected a whole number >= 0"),
        ({"pruned_ratios": 1.0}, "ratio 1.0 for 'all layers' is not valid"),
        ({"share_of": "filters"}, "'filters' is not valid; expected channels or energy"),
        ({"share_of": None}, "Pruner.share_of: None is not valid"),
        ({"share_of": ["energy"]}, "Pruner.share_of: ['energy'] is not valid"),
        ({"share_of": "energy"}, "criterion is 'l1_norm'; expected criterion: bn_scale"),
    ],
)
def test_mistakes_in_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Pruner(**{"pruned_ratios": 0.5, **settings})
    assert message in str(caught.value)
