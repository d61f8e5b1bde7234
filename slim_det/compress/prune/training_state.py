"""What a training keeps beside the parameters, sliced as they are: slots, averages, gradients."""

from __future__ import annotations

from typing import Any

import paddle

from slim_det.compress.prune.compose import Slices
from slim_det.compress.tensors import set_parameter, sliced, slot_owner
from slim_det.core.errors import TrainingError


def slots_by_parameter(model: paddle.nn.Layer, optimizer: Any) -> dict[str, list[paddle.Tensor]]:
    """State-dict name -> the optimizer's tensors of the parameter's shape, such as momentum.

    Before the first step of a resumed training they are what was loaded; afterwards what the
    optimizer works on.

    Raises:
        TrainingError: A slot is neither of its parameter's shape nor a single number.
    """
    parameters = {param.name: (name, param) for name, param in model.named_parameters()}
    found: dict[str, list[paddle.Tensor]] = {}
    for key, slot in optimizer.state_dict().items():
        owner = slot_owner(key, parameters) if isinstance(slot, paddle.Tensor) else ""
        if not owner:
            continue
        name, param = parameters[owner]
        if slot.shape == param.shape:
            found.setdefault(name, []).append(slot)
        elif slot.size > 1:
            raise TrainingError(
                f"'{name}' cannot be cut in training: its optimizer state '{key}' is {slot.shape}, "
                f"the parameter {param.shape}"
            )
    return found


def slice_training_state(
    model: paddle.nn.Layer,
    slices: Slices,
    slots: dict[str, list[paddle.Tensor]],
    average: dict[str, paddle.Tensor],
) -> None:
    """Slice in place what belongs to parameters that were sliced, and drop their gradients.

    Args:
        model: The model, whose parameters were sliced.
        slices: What was kept of them.
        slots: Of its optimizer, from `slots_by_parameter` before that.
        average: State dict of a moving average of the model; {} without one. An entry that is the
            model's own tensor was sliced with it.
    """
    parameters = dict(model.named_parameters())
    for name, axes in slices.items():
        own = parameters[name]
        others = [*slots.get(name, ())]
        if name in average and average[name] is not own:
            others.append(average[name])
        for tensor in others:
            set_parameter(tensor, sliced(tensor.numpy(), axes))
        # `clear_grad` keeps zeros of the old shape, for the case that a step gives no gradient.
        own.grad = None


def restart_average(model: paddle.nn.Layer, average: dict[str, paddle.Tensor]) -> None:
    """Let a moving average start from the model as it is, after a repair has changed it.

    Args:
        model: The model.
        average: State dict of the moving average; {} without one.
    """
    for name, param in model.named_parameters():
        if name in average and average[name] is not param:
            set_parameter(average[name], param.numpy())
