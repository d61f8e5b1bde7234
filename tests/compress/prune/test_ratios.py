"""How many channels a ratio removes, at once and in steps, and what the presets leave."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slim_det.compress.prune.ratios import (
    even_progress,
    progress_by_macs,
    ratio_at,
    units_removed,
    units_within_energy,
)
from slim_det.detectors.yolov3_head import PRESETS, YOLO_HEAD_LAYERS

HEAD_CHANNELS = (512, 1024, 512, 1024, 512, 1024, 256, 512, 256, 512, 256, 512) + (
    128, 256, 128, 256, 128, 256,
)  # fmt: skip
R578_REMAINS = (256, 512, 256, 512, 256, 512, 77, 154, 77, 154, 77, 154) + (
    26, 51, 26, 51, 26, 51,
)  # fmt: skip
SENSITY_REMAINS = (461, 819, 410, 819, 410, 922, 205, 358, 179, 358, 205, 461) + (
    90, 154, 77, 154, 77, 179,
)  # fmt: skip
RATIOS = st.floats(0.0, 1.0, exclude_min=True, exclude_max=True)


@pytest.mark.parametrize(
    ("units", "ratio", "removed"),
    [
        (1, 0.9, 0),
        (2, 0.9, 1),
        (10, 0.99, 9),
        (10, 0.001, 0),
        (10, 0.3, 3),
        (4, 0.125, 0),  # 0.5 goes to the even neighbour, 0
        (12, 0.125, 2),  # 1.5 to 2
        (20, 0.125, 2),  # 2.5 to 2
        (28, 0.125, 4),  # 3.5 to 4
        (512, 0.1, 51),
        (1024, 0.7, 717),
    ],
)
def test_the_share_is_rounded_half_to_even(units: int, ratio: float, removed: int) -> None:
    assert units_removed(units, ratio) == removed


@given(units=st.integers(1, 4096), ratio=RATIOS)
def test_never_all_and_never_less_than_none(units: int, ratio: float) -> None:
    removed = units_removed(units, ratio)
    assert 0 <= removed <= units - 1
    assert removed == min(int(round(units * ratio)), units - 1)


@pytest.mark.parametrize(
    ("units", "ratio", "align", "remains"),
    [
        (64, 0.5, 8, 32),
        (64, 0.4, 8, 40),  # 38 is nearer to 40 than to 32
        (64, 0.45, 8, 32),  # 35 is nearer to 32
        (24, 0.5, 8, 16),  # 12 lies between 8 and 16; the wider one stays
        (64, 0.99, 8, 8),
        (64, 0.01, 8, 64),
        (10, 0.1, 8, 8),
        (12, 0.01, 8, 12),  # 16 would be more than there is
        (7, 0.9, 8, 7),  # narrower than one multiple
        (8, 0.9, 8, 8),
    ],
)
def test_what_remains_is_aligned(units: int, ratio: float, align: int, remains: int) -> None:
    assert units - units_removed(units, ratio, align) == remains


@given(units=st.integers(1, 600), ratio=RATIOS, align=st.integers(1, 32))
def test_aligned_remains_are_multiples_or_everything(units: int, ratio: float, align: int) -> None:
    remains = units - units_removed(units, ratio, align)
    assert 1 <= remains <= units
    assert remains % align == 0 or remains == units
    unaligned = units - units_removed(units, ratio)
    assert abs(remains - unaligned) <= max(align / 2, align - unaligned)


@pytest.mark.parametrize(
    ("scores", "ratio", "removed"),
    [
        # Energies 1, 4, 9, 36: of 50, the smallest three have 1, 5 and 14.
        ([6.0, 1.0, 3.0, 2.0], 0.01, 0),
        ([6.0, 1.0, 3.0, 2.0], 0.02, 1),  # exactly the share of the smallest
        ([6.0, 1.0, 3.0, 2.0], 0.09, 1),
        ([6.0, 1.0, 3.0, 2.0], 0.1, 2),
        ([6.0, 1.0, 3.0, 2.0], 0.27, 2),
        ([6.0, 1.0, 3.0, 2.0], 0.28, 3),
        ([6.0, 1.0, 3.0, 2.0], 0.99, 3),
        ([-6.0, 1.0, -3.0, 2.0], 0.1, 2),
        ([0.0, 0.0, 5.0, 0.0], 1e-9, 3),  # channels without energy always go
        ([0.0, 0.0], 0.5, 1),  # but one stays
        ([2.0], 0.9, 0),
        ([1.0, 1.0, 1.0, 1.0], 0.5, 2),  # of equal ones, as many as fit
        ([1.0, 1.0, 1.0, 1.0], 0.49, 1),
    ],
)
def test_energy_is_the_sum_of_squares(scores: list[float], ratio: float, removed: int) -> None:
    assert units_within_energy(np.array(scores), ratio) == removed


@given(
    scores=st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=40).map(np.array),
    ratio=RATIOS,
    align=st.integers(1, 16),
)
def test_energy_keeps_a_channel_and_the_multiple(
    scores: np.ndarray, ratio: float, align: int
) -> None:
    remains = len(scores) - units_within_energy(scores, ratio, align)
    assert 1 <= remains <= len(scores)
    assert remains % align == 0 or remains == len(scores)


@pytest.mark.parametrize(
    ("ratio", "align", "remains"),
    [(0.3, 1, 7), (0.3, 4, 8), (0.5, 4, 4), (0.99, 4, 4), (0.01, 4, 10), (0.99, 16, 10)],
)
def test_what_remains_of_the_energy_is_aligned(ratio: float, align: int, remains: int) -> None:
    """Ten channels of equal energy, so that a share of the energy is one of the channels."""
    assert 10 - units_within_energy(np.full(10, 2.0), ratio, align) == remains


@pytest.mark.parametrize(
    ("preset", "expected"), [("r578", R578_REMAINS), ("sensity", SENSITY_REMAINS)]
)
def test_presets_leave_the_published_channels(preset: str, expected: tuple[int, ...]) -> None:
    ratios = PRESETS[preset]
    assert tuple(ratios) == YOLO_HEAD_LAYERS
    remains = [
        channels - units_removed(channels, ratio)
        for channels, ratio in zip(HEAD_CHANNELS, ratios.values())
    ]
    assert tuple(remains) == expected


def test_there_are_two_presets_of_18_layers() -> None:
    assert sorted(PRESETS) == ["r578", "sensity"]
    assert len(YOLO_HEAD_LAYERS) == len(set(YOLO_HEAD_LAYERS)) == len(HEAD_CHANNELS) == 18


@pytest.mark.parametrize(
    ("ratio", "removed"),
    [
        (1 - 0.8**3, [0.2, 0.36, 0.488]),  # the published rounds of 20 %: -20, -36 and -50 %
        (0.875, [0.5, 0.75, 0.875]),
        (0.271, [0.1, 0.19, 0.271]),
    ],
)
def test_three_steps_remove_the_same_share_of_what_is_left(
    ratio: float, removed: list[float]
) -> None:
    found = [ratio_at(ratio, progress) for progress in even_progress(3)]
    assert found == pytest.approx(removed, abs=1e-12)
    assert found[-1] == ratio


@given(ratio=RATIOS, steps=st.integers(1, 30))
def test_every_step_keeps_one_share(ratio: float, steps: int) -> None:
    progress = even_progress(steps)
    assert len(progress) == steps and progress[-1] == 1.0
    kept = [1.0] + [1 - ratio_at(ratio, at) for at in progress]
    for before, after in zip(kept, kept[1:]):
        assert after == pytest.approx(before * (1 - ratio) ** (1 / steps), rel=1e-9)
    assert ratio_at(ratio, 1.0) == ratio and ratio_at(ratio, 0.0) == 0.0


@given(
    units=st.integers(1, 2048),
    ratio=RATIOS,
    steps=st.integers(1, 12),
    align=st.sampled_from([1, 2, 8, 16]),
)
def test_no_step_gives_channels_back(units: int, ratio: float, steps: int, align: int) -> None:
    removed = [units_removed(units, ratio_at(ratio, p), align) for p in even_progress(steps)]
    assert removed == sorted(removed)
    assert removed[-1] == units_removed(units, ratio, align)


def test_steps_by_macs_of_a_straight_line() -> None:
    """100 MACs, of which the complete ratios leave 65: five steps of 7, as 7 * 5 is 35."""
    progress = progress_by_macs(lambda at: 100.0 - 35.0 * at, 100.0, 0.07)
    assert progress == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0], abs=2e-6)
    assert progress[-1] == 1.0


@pytest.mark.parametrize(("share", "steps"), [(0.07, 6), (0.2, 2), (0.36, 1), (0.9, 1), (0.1, 4)])
def test_as_many_steps_as_are_needed(share: float, steps: int) -> None:
    """The last one removes the rest: 64 of 100 MACs are left in the end."""
    assert len(progress_by_macs(lambda at: 100.0 - 36.0 * at, 100.0, share)) == steps


@given(
    removable=st.integers(1, 99),
    units=st.integers(1, 40),
    share=st.floats(0.02, 0.98),
)
def test_each_step_reaches_its_macs_and_no_earlier_progress_does(
    removable: int, units: int, share: float
) -> None:
    """MACs fall in steps, as those of whole channels do."""

    def macs_at(at: float) -> float:
        return 100.0 - removable * int(units * at + 1e-9) / units

    progress = progress_by_macs(macs_at, 100.0, share)
    assert progress == sorted(set(progress)) and progress[-1] == 1.0
    reached = [macs_at(at) for at in progress]
    assert all(before > after for before, after in zip([100.0, *reached], reached))
    for at, macs in zip(progress[:-1], reached):
        due = [k for k in range(1, 60) if 100.0 * (1 - share * k) >= macs]
        assert due and macs_at(at - 2e-6) > 100.0 * (1 - share * due[-1])
    assert len(progress) <= removable / 100.0 / share + 1 + 1e-9
