"""Ranges from statistics, against values worked out by hand and against the values themselves."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slim_det.compress.quantize.observers import OBSERVERS, input_range
from slim_det.compress.quantize.statistics import BINS, Statistics
from slim_det.core.errors import ConfigError


def of_values(*images: np.ndarray) -> Statistics:
    found = Statistics()
    for image in images:
        found.add(np.asarray(image, "float32").reshape(1, -1))
    return found


def of_counts(counts: dict[int, int], limit: float = 4096.0) -> Statistics:
    """Statistics with these counts; with a limit of 4096 a bin is 1 wide."""
    histogram = np.zeros(BINS, np.int64)
    for index, count in counts.items():
        histogram[index] = count
    return Statistics([(max(counts) + 0.5) * limit / BINS], histogram, limit)


def rounded(values: np.ndarray, limit: float, bits: int) -> np.ndarray:
    """The definition: whole steps of limit / (2^(bits-1) - 1), clipped."""
    step = limit / (2 ** (bits - 1) - 1)
    return np.clip(np.round(values / step) * step, -limit, limit)


@pytest.mark.parametrize("observer", OBSERVERS)
def test_only_zeros_give_the_smallest_range(observer: str) -> None:
    assert input_range(observer, of_values(np.zeros(5)), 8) == 1e-8


@pytest.mark.parametrize("observer", OBSERVERS)
@pytest.mark.parametrize("bits", [2, 8, 16])
def test_one_value_is_kept_whole(observer: str, bits: int) -> None:
    """All values being one value, no range is better than that value."""
    found = input_range(observer, of_values(np.full(7, 3.0)), bits)
    assert found == pytest.approx(3.0, abs=4 / BINS)


def test_means_and_maxima_by_hand() -> None:
    three = of_values([1.0, -2.0], [4.0], [-10.0, 3.0])
    assert input_range("abs_max", three, 8) == 10.0
    assert input_range("avg", three, 8) == pytest.approx(16 / 3)
    # 0.9 * (0.9 * 2 + 0.1 * 4) + 0.1 * 10
    assert input_range("moving_average", three, 8) == pytest.approx(2.98)


def test_percentile_by_hand() -> None:
    """90 values in bin 10, 9 in bin 20, 1 in bin 3000: the smallest whole bins that hold them."""
    some = of_counts({10: 90, 20: 9, 3000: 1})
    assert input_range("hist", some, 8, 0.9) == 11.0
    assert input_range("hist", some, 8, 0.91) == 21.0
    assert input_range("hist", some, 8, 0.99) == 21.0
    assert input_range("hist", some, 8, 0.991) == 3000.5
    assert input_range("hist", some, 8, 1.0) == 3000.5


@pytest.mark.parametrize("percent", [0.5, 0.9, 0.999])
def test_percentile_is_that_of_numpy_within_a_bin(percent: float) -> None:
    values = np.random.default_rng(0).normal(size=50_000).astype("float32")
    some = of_values(values)
    expected = np.quantile(np.abs(values), percent, method="inverted_cdf")
    assert 0 <= input_range("hist", some, 8, percent) - expected <= some.width


def squares(values: np.ndarray, there: np.ndarray) -> float:
    return float(np.square(values - there).mean())


def moments(values: np.ndarray, there: np.ndarray) -> float:
    sizes = np.abs(values), np.abs(there)
    return abs(sizes[0].mean() - sizes[1].mean()) + abs(sizes[0].std() - sizes[1].std())


@pytest.mark.parametrize(("observer", "error"), [("mse", squares), ("emd", moments)])
@pytest.mark.parametrize("bits", [4, 8])
def test_scans_find_the_best_range_of_the_values_themselves(
    observer: str, error: Callable[[np.ndarray, np.ndarray], float], bits: int
) -> None:
    rng = np.random.default_rng(1)
    values = rng.laplace(size=20_000) * rng.choice([1.0, 3.0], 20_000)
    found = input_range(observer, of_values(values), bits)
    top = np.abs(values).max()
    shares = np.linspace(0.3, 1.0, 71)
    errors = [error(values, rounded(values, share * top, bits)) for share in shares]
    here = error(values, rounded(values, found, bits))
    assert here <= min(errors) + 0.01 * (max(errors) - min(errors))
    if bits == 4:
        assert found < 0.9 * top  # the whole range is far from the best one


def test_scans_by_hand() -> None:
    """2 bits are -r, 0 and r: of values 1 and 2 (3 to 1) all become r for 0.6 <= r <= 2."""
    some = of_values([1.0] * 3 + [2.0])
    # Squares: 3 (r - 1)^2 + (2 - r)^2, least at r = 1.25.
    assert input_range("mse", some, 2) == pytest.approx(1.25, abs=0.02)
    # The deviation of what is all r is 0 at any r; the mean is right at 1.25.
    assert input_range("emd", some, 2) == pytest.approx(1.25, abs=0.02)


def test_few_large_values_are_clipped_less_by_their_deviation_than_by_their_error() -> None:
    """20,000 values up to 1 and one in a thousand up to 10."""
    rng = np.random.default_rng(2)
    values = rng.uniform(0, 1, 20_000) * rng.choice([1.0, 10.0], 20_000, p=[0.999, 0.001])
    assert input_range("emd", of_values(values), 8) > input_range("mse", of_values(values), 8)


def test_kl_keeps_an_even_distribution_whole() -> None:
    even = Statistics([3.99], np.full(BINS, 10, np.int64), 4.0)
    assert input_range("kl", even, 8) == 3.99


def test_kl_clips_a_lonely_outlier() -> None:
    """A body in the lowest quarter and one value far away: 128 levels belong to the body."""
    rng = np.random.default_rng(2)
    body = np.abs(rng.normal(0.0, 1.0, 200_000))
    found = input_range("kl", of_values(np.append(body, 16.5)), 8)
    assert 2.5 < found < 6.0


def test_kl_against_its_formula_on_a_small_case() -> None:
    """The same search in plain loops over 2 bits (2 levels) and few bins."""
    counts = {i: c for i, c in enumerate([1, 40, 38, 30, 22, 9, 4, 2, 1, 1] * 30)}
    decay = {i: int(c * 1000 * 0.97**i) + (i % 7 == 0) for i, c in counts.items()}
    some = of_counts(decay)
    reference = [float(decay[i]) for i in range(len(decay))]
    reference[0] = reference[1]
    total = len(reference)
    while reference[total - 1] == 0:
        total -= 1
    results = {}
    for end in [*range(128, total, 8), total]:
        kept = reference[:end]
        target = [*kept[:-1], kept[-1] + sum(reference[end:])]
        middle = end // 2
        model = []
        for part in (kept[:middle], kept[middle:]):
            mean = sum(part) / max(1, sum(1 for c in part if c))
            model += [mean if c else 0.0 for c in part]
        if any(t > 0 and m == 0 for t, m in zip(target, model)):
            continue
        results[end] = sum(
            t / sum(target) * np.log(t / sum(target) / (m / sum(model)))
            for t, m in zip(target, model)
            if t
        )
    best = min(results, key=lambda end: results[end])
    assert input_range("kl", some, 2) == best + 0.5


@settings(deadline=None, max_examples=40)
@given(
    images=st.lists(
        st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=50), min_size=1, max_size=4
    ),
    observer=st.sampled_from(sorted(OBSERVERS)),
    bits=st.integers(2, 16),
)
def test_never_above_the_largest_value(images: list[list[float]], observer: str, bits: int) -> None:
    some = of_values(*images)
    found = input_range(observer, some, bits)
    assert 0 < found <= max(some.largest, 1e-8) + some.width


@settings(deadline=None, max_examples=30)
@given(exponent=st.integers(-20, 20), observer=st.sampled_from(sorted(OBSERVERS)))
def test_ranges_scale_with_the_values(exponent: int, observer: str) -> None:
    values = np.random.default_rng(3).normal(size=2000)
    one = input_range(observer, of_values(values[:1000], values[1000:]), 8)
    scaled = values * 2.0**exponent
    other = input_range(observer, of_values(scaled[:1000], scaled[1000:]), 8)
    assert other == pytest.approx(one * 2.0**exponent, rel=1e-6)


def test_unknown_names_and_shares() -> None:
    some = of_values([1.0])
    with pytest.raises(ConfigError, match="unknown observer 'histt'; did you mean 'hist'"):
        input_range("histt", some, 8)
    for wrong in (0.0, 1.5, -1, True, "many"):
        with pytest.raises(ConfigError, match="expected a share above 0 and at most 1"):
            input_range("hist", some, 8, wrong)  # type: ignore[arg-type]
