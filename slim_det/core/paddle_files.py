"""Reading Paddle's files of tensors, with errors that a user can act on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import paddle

from slim_det.core.errors import WeightsError, one_line

_NAME_TABLE = "StructuredToParameterName@@"
"""Paddle stores a table of names among the tensors of some files."""


def read_state(path: Path) -> dict[str, np.ndarray]:
    """Read the tensors of a ``.pdparams`` or ``.pdema`` file.

    Raises:
        WeightsError: The file is truncated, or is not a file of named tensors.
    """
    state = read_paddle_file(path)
    tensors = {name: value for name, value in state.items() if name != _NAME_TABLE}
    for name, value in tensors.items():
        if not isinstance(value, np.ndarray):
            raise WeightsError(
                f"'{path}' is not a file of weights: '{name}' is a {type(value).__name__}"
            )
    return tensors


def read_paddle_file(path: Path) -> dict[str, Any]:
    """Read what `paddle.save` wrote, tensors as arrays.

    Raises:
        WeightsError: The file is truncated, or does not hold a dict.
    """
    try:
        content = paddle.load(str(path), return_numpy=True)
    except Exception as error:
        reason = one_line(error)[:120] or type(error).__name__
        raise WeightsError(f"'{path}' cannot be read, it may be cut short: {reason}") from error
    if not isinstance(content, dict) or not content:
        raise WeightsError(f"'{path}' is not a file of named tensors")
    return content
