"""Which widths are measured: by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slim_det.core.errors import ConfigError
from slim_det.planning.profile.grid import check_widths, shapes_to_measure, widths
from slim_det.planning.profile.shapes import conv_shapes
from tests.compress.prune.small_net import SmallNet, traced


def test_widths_by_hand() -> None:
    assert widths(512, [0.1, 0.25, 1.0]) == [48, 128, 512]  # 51.2 is nearest to 6 x 8
    assert widths(24, [0.1, 0.5, 1.0]) == [2, 12, 24]  # narrow layers are not rounded to eights
    assert widths(36, [0.5, 1.0]) == [16, 36]  # 18 is rounded, the full width is not
    assert widths(12, [0.1, 0.5, 1.0], unit=4) == [4, 8, 12]
    assert widths(1, [0.1, 1.0]) == [1]


@given(st.integers(1, 2048), st.lists(st.floats(0.01, 1.0), max_size=5))
def test_widths_stay_within_the_layer_and_end_with_all_of_it(
    channels: int, shares: list[float]
) -> None:
    found = widths(channels, sorted({*shares, 1.0}))
    assert found[-1] == channels
    assert found[0] >= 1
    assert found == sorted(set(found))


def test_only_what_can_be_cut_varies() -> None:
    net = SmallNet()
    trace, groups = traced(net)
    assert groups.groups["inner"].prunable
    assert not groups.groups["head"].prunable  # the output

    shapes = shapes_to_measure(net, trace, (0.5, 1.0))

    pairs = {(s.in_channels, s.out_channels) for s in shapes if s.kernel == 1}
    inner, outer = {(2, 3), (2, 6), (4, 3), (4, 6)}, {(3, 2), (3, 4), (6, 2), (6, 4)}
    assert pairs == inner | outer | {(2, 2), (4, 2)}  # the head keeps its two outputs
    assert {s.out_channels for s in shapes if s.in_channels == 3 and s.kernel == 3} == {2, 4}
    assert {(s.in_channels, s.groups) for s in shapes if s.depthwise} == {(2, 2), (4, 4)}


def test_full_widths_alone_are_the_shapes_of_the_model() -> None:
    net = SmallNet()
    trace, _ = traced(net)
    assert shapes_to_measure(net, trace, (1.0,)) == [shape for _, shape in conv_shapes(trace)]


@pytest.mark.parametrize("text", ["", "0", "1.01", "-0.5", "0.5,half", "0.5,,1", "nan"])
def test_shares_that_are_not_valid(text: str) -> None:
    with pytest.raises(ConfigError, match="--widths: '.*' is not valid; expected shares"):
        check_widths(text)


def test_shares_rise_and_end_with_the_full_width() -> None:
    assert check_widths("0.5, 0.25") == (0.25, 0.5, 1.0)
