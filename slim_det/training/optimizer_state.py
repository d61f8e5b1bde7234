"""Optimizer state of a resumed run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import paddle

from slim_det.compress.steps import steps_of
from slim_det.compress.tensors import slot_owner
from slim_det.core.errors import WeightsError
from slim_det.core.paddle_files import read_paddle_file


def load_optimizer(model: paddle.nn.Layer, path: Path, optimizer: Any) -> int:
    """Load optimizer state, fitted to the steps that the model has had since.

    Works for any optimizer whose slots have the shape of their parameter (Momentum, Adam,
    RMSProp, ...).

    Args:
        model: The model that the optimizer was built for, with its steps.
        path: ``.pdopt`` file.
        optimizer: Receives the state.

    Returns:
        The number of epochs done.

    Raises:
        WeightsError: The file is missing or damaged, or a slot belongs to no parameter, has
            another shape, or is missing.
    """
    if not path.is_file():
        raise WeightsError(f"optimizer state '{path}' does not exist; it is needed to resume")
    state = read_paddle_file(path)
    last_epoch = int(state.pop("last_epoch", 0))
    names = {param.name: name for name, param in model.named_parameters()}
    masters = state.get("master_weights", {})
    slots = {key: v for key, v in state.items() if isinstance(v, np.ndarray)}
    covered = set()
    for table, entries in ((state, slots), (masters, dict(masters))):
        for key, value in entries.items():
            owner = slot_owner(key, names)
            if not owner:
                raise WeightsError(f"'{path}' is of another model: '{key}' belongs to no parameter")
            covered.add(owner)
            table[key] = _fit_slot(key, np.asarray(value), model, names[owner], path)
    if slots:
        learning = {p.name for p in model.parameters() if not p.stop_gradient}
        left = sorted(learning - covered)
        if left:
            raise WeightsError(f"'{path}' has no state for '{names[left[0]]}' ({len(left)} in all)")
    tensors = {k: paddle.to_tensor(v) if isinstance(v, np.ndarray) else v for k, v in state.items()}
    optimizer.set_state_dict(tensors)
    return last_epoch


def _fit_slot(
    key: str, value: np.ndarray, model: paddle.nn.Layer, name: str, path: Path
) -> np.ndarray:
    """A slot in the shape of its parameter."""
    shape, fitted = tuple(dict(model.named_parameters())[name].shape), value
    for step in steps_of(model):
        if fitted.shape != shape and fitted.size > 1:
            fitted = step.fit(name, fitted)
    if fitted.shape == shape or fitted.size == 1:
        return fitted
    raise WeightsError(
        f"'{path}' is of another model: '{key}' is {list(value.shape)}, "
        f"its parameter '{name}' is {list(shape)}"
    )
