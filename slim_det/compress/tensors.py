"""Tensors of a model: their shapes, how two models differ, and new values of any shape."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping

import numpy as np
import paddle

SHOWN_DIFFERENCES = 5


def tensor_shapes(model: paddle.nn.Layer) -> dict[str, tuple[int, ...]]:
    """State-dict name -> shape of every parameter of a model."""
    return {name: tuple(param.shape) for name, param in model.named_parameters()}


def other_names(model: paddle.nn.Layer) -> dict[str, str]:
    """State-dict names of parameters that have several -> the first name of each.

    A layer that is an attribute and an entry of a list, as in PicoDet's head, has two.
    """
    first = {id(param): name for name, param in model.named_parameters()}
    state = model.state_dict()
    return {
        name: first[id(tensor)]
        for name, tensor in state.items()
        if first.get(id(tensor), name) != name
    }


def stored_constants(model: paddle.nn.Layer) -> dict[str, paddle.Tensor]:
    """State-dict name -> tensor of the buffers, which a model computes from its settings."""
    parameters = {id(param) for param in model.parameters()}
    return {n: tensor for n, tensor in model.state_dict().items() if id(tensor) not in parameters}


def fingerprint(architecture: str, tensors: dict[str, tuple[int, ...]]) -> str:
    """SHA-256 that identifies a model by its class, tensor names and shapes."""
    text = json.dumps([architecture, sorted((n, list(s)) for n, s in tensors.items())])
    return hashlib.sha256(text.encode()).hexdigest()


def set_parameter(parameter: paddle.Tensor, value: np.ndarray) -> None:
    """Give a parameter a value of any shape; its name, gradient flag and settings stay."""
    place = paddle.framework._current_expected_place()
    parameter.value().get_tensor().set(np.ascontiguousarray(value), place)


def slot_owner(key: str, parameters: Iterable[str]) -> str:
    """Parameter whose optimizer state has a name such as ``conv2d_0.w_0_velocity_0``.

    Args:
        key: Name of the state.
        parameters: Names of parameters (``conv2d_0.w_0``).

    Returns:
        The longest name that the key starts with; '' if there is none.
    """
    owners = (name for name in parameters if f"{key}_".startswith(f"{name}_"))
    return max(owners, key=len, default="")


def sliced(value: np.ndarray, axes: Mapping[int, np.ndarray]) -> np.ndarray:
    """Only the kept indices of some axes, C-contiguous; ``axes`` is axis -> kept indices."""
    for axis, kept in axes.items():
        value = np.take(value, kept, axis=axis)
    return np.ascontiguousarray(value)


def differing(
    left: dict[str, tuple[int, ...]],
    right: dict[str, tuple[int, ...]],
    left_name: str,
    right_name: str,
) -> list[str]:
    """A phrase for every tensor that only one side has, or whose shapes differ."""
    phrases = []
    for name in dict.fromkeys([*left, *right]):
        if name not in right:
            phrases.append(f"{name} is only in the {left_name}")
        elif name not in left:
            phrases.append(f"{name} is only in the {right_name}")
        elif left[name] != right[name]:
            phrases.append(
                f"{name} is {list(left[name])} in the {left_name} "
                f"and {list(right[name])} in the {right_name}"
            )
    return phrases


def summary(phrases: list[str]) -> str:
    """The first few phrases on one line, and how many more there are."""
    more = len(phrases) - SHOWN_DIFFERENCES
    shown = "; ".join(phrases[:SHOWN_DIFFERENCES])
    return f"{shown}; and {more} more" if more > 0 else shown
