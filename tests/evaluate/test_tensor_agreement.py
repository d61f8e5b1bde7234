"""Distances of hand-set tensors."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slim_det.evaluate.tensor_agreement import (
    ErrorEnergy,
    TensorAgreement,
    compare_tensors,
    cosine,
    worst_of,
)


def test_no_tensors() -> None:
    assert compare_tensors([], []) == worst_of([]) == TensorAgreement(0.0, 0.0, 1.0, "")


def test_equal_tensors() -> None:
    tensors = [np.array([1.0, -2.0]), np.zeros(3), np.zeros((0, 6))]
    assert compare_tensors(tensors, tensors) == TensorAgreement(0.0, 0.0, 1.0, "")


def test_known_distances() -> None:
    """Relative to the largest value of the reference, whatever its sign."""
    found = compare_tensors([np.array([[1.0, 1.0]])], [np.array([[-4.0, 0.0]])])
    assert (found.max_abs, found.max_relative) == (5.0, 1.25)
    assert found.cosine == pytest.approx(-math.sqrt(0.5))


def test_worst_of_all_tensors() -> None:
    """Each figure of its own tensor."""
    reference = [np.array([100.0, 0.0]), np.array([1.0, 1.0])]
    found = compare_tensors([np.array([110.0, 0.0]), np.array([1.0, 0.5])], reference)
    assert (found.max_abs, found.max_relative) == (10.0, 0.5)
    assert found.cosine == pytest.approx(1.5 / math.sqrt(2 * 1.25))


def test_differences_of_float32_are_exact() -> None:
    found, reference = np.float32([1.0 + 2**-23]), np.float32([2**-24])
    assert compare_tensors([found], [reference]).max_abs == 1.0 + 2**-23 - 2**-24


def test_a_reference_of_zeros() -> None:
    """There is nothing that a difference could be relative to."""
    found = compare_tensors([np.array([0.0, 0.5])], [np.zeros(2)])
    assert found == TensorAgreement(0.5, 0.5, 0.0, "")


@pytest.mark.parametrize(
    ("found", "reference", "fault"),
    [
        ([np.ones(3)], [np.ones(2)], "shapes are [[3]], expected [[2]]"),
        ([np.ones((2, 1))], [np.ones(2)], "shapes are [[2, 1]], expected [[2]]"),
        ([], [np.ones(2)], "shapes are [], expected [[2]]"),
        ([np.array([np.nan])], [np.ones(1)], "values are not finite"),
        ([np.array([np.inf])], [np.array([np.inf])], "values are not finite"),
        ([np.ones(1)], [np.array([np.nan])], "values of the reference are not finite"),
    ],
)
def test_what_cannot_be_compared(
    found: list[np.ndarray], reference: list[np.ndarray], fault: str
) -> None:
    assert compare_tensors(found, reference) == TensorAgreement(np.inf, np.inf, 0.0, fault)


def test_the_first_fault_is_named() -> None:
    parts = [
        TensorAgreement(),
        TensorAgreement(2.0, 2.0, 0.5, "first"),
        TensorAgreement(fault="then"),
    ]
    assert worst_of(parts) == TensorAgreement(2.0, 2.0, 0.5, "first")


def test_known_cosines() -> None:
    assert cosine(np.array([1.0, 0.0]), np.array([1.0, 1.0])) == pytest.approx(math.sqrt(0.5))
    assert cosine(np.array([1.0, 0.0]), np.array([-1.0, 0.0])) == -1.0
    assert cosine(np.zeros(3), np.zeros(3)) == 1.0
    assert cosine(np.zeros(3), np.ones(3)) == 0.0


@given(
    st.lists(st.integers(-1000, 1000), min_size=1, max_size=20).filter(any),
    st.floats(0.125, 128.0),
)
def test_a_factor_changes_no_angle(values: list[int], factor: float) -> None:
    tensor = np.array(values, np.float64)
    scaled = cosine(tensor * factor, tensor)
    assert scaled <= 1.0
    assert scaled == pytest.approx(1.0)


def test_no_energy_is_no_error() -> None:
    energy = ErrorEnergy()
    assert energy.relative == 0.0
    energy.add(np.zeros(2), np.zeros(2))
    assert energy.relative == 0.0


def test_energies_add_up() -> None:
    """(1 + 4 + 4) of (9 + 16 + 25)."""
    energy = ErrorEnergy()
    energy.add(np.array([2.0, 6.0]), np.array([3.0, 4.0]))
    energy.add(np.array([[-3.0]]), np.array([[-5.0]]))
    assert (energy.signal, energy.noise) == (50.0, 9.0)
    assert energy.relative == pytest.approx(0.18)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_energy_that_is_not_finite_is_never_small(value: float) -> None:
    energy = ErrorEnergy()
    energy.add(np.array([value]), np.ones(1))
    assert not energy.relative < 1.0


def test_noise_without_signal_is_large() -> None:
    energy = ErrorEnergy()
    energy.add(np.array([1e-6]), np.zeros(1))
    assert energy.relative > 1e9
