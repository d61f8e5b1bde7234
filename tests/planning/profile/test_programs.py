"""Programs around one convolution: each kind is accepted by the engine."""

from __future__ import annotations

import pytest

from slim_det.graph.operators import fused_activations
from slim_det.planning.profile.programs import conv_runner, copies, empty_runner, surroundings
from slim_det.planning.profile.shapes import ConvShape

SMALL = ConvShape(8, 8, 8, 8, 3, 1, 1, act="relu")


def test_small_convolutions_are_repeated_more_often() -> None:
    assert copies(SMALL) == 8
    assert copies(ConvShape(512, 1024, 64, 64, 3, 1, 1)) == 2
    # 1x1, 100 -> 1000 channels on 10x10 pixels: ten million, so two fit into 25 million
    assert copies(ConvShape(100, 1000, 10, 10, 1)) == 2


@pytest.mark.parametrize(
    "shape",
    [
        SMALL,
        ConvShape(3, 8, 16, 12, 3, 2, 1),
        ConvShape(12, 12, 8, 8, 3, 1, 1, groups=12),
        ConvShape(12, 24, 8, 8, 5, 2, 2, groups=12),
        ConvShape(12, 8, 9, 9, 3, 1, 2, dilation=2, groups=4),
        *(ConvShape(8, 5, 4, 4, 1, act=act) for act in fused_activations()),
    ],
    ids=str,
)
def test_every_kind_of_convolution_runs(shape: ConvShape) -> None:
    conv_runner(shape, 1)()


def test_an_empty_program_serves_all_that_read_the_same() -> None:
    other = ConvShape(8, 99, 8, 8, 5, 2, 2)
    assert surroundings(SMALL) == surroundings(other) == (8, 8, 8)
    empty_runner(SMALL, 1)()
