"""Stops a training at the first number that is not finite, before the optimizer's step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import paddle
from paddle import Tensor
from paddle.nn import Layer

from slim_det.core.errors import TrainingError
from slim_det.detectors.yolov3_outputs import yolo_outputs


def require_finite(total: Tensor, parts: Mapping[str, Tensor], where: str, remedy: str) -> None:
    """Make sure that a loss is finite; the error names the first cause.

    Args:
        total: A tensor that is not finite if any part is not.
        parts: Name -> part.
        where: Epoch and step, for the error message.
        remedy: What the user can try.

    Raises:
        TrainingError: A number is not finite.
    """
    if bool(paddle.isfinite(total).all()):
        return
    culprit = "the total loss is not finite"
    for name, value in parts.items():
        if not bool(paddle.isfinite(value).all()):
            kind = "nan" if bool(paddle.isnan(value).any()) else "infinite"
            culprit = f"{name} is {kind}"
            break
    raise TrainingError(
        f"{where}: {culprit}; the last checkpoint stays as it was; expected finite losses, "
        f"try {remedy}"
    )


def watch_outputs(model: Layer, check: Callable[[str, Tensor], None]) -> list[Any]:
    """Let a function check raw YOLO outputs before ppdet's loss, whose kernels refuse NaN.

    Args:
        model: A detector; nothing is checked while it is evaluated.
        check: Takes the path of a layer and what the layer gives.

    Returns:
        Handles that remove the checks again.
    """

    def watch(path: str) -> Any:
        def hook(layer: Layer, inputs: Any, output: Tensor) -> None:
            if model.training and paddle.is_grad_enabled():
                check(path, output)

        return hook

    layers = dict(model.named_sublayers())
    return [layers[path].register_forward_post_hook(watch(path)) for path in yolo_outputs(model)]
