"""AuxiliaryModules: what is trained beside the student and is not part of it.

Adaptors are 1x1 convolutions that bring the student's channels to the teacher's. Contexts are what
a loss learns itself. A peer is a teacher that learns too. All have an optimizer of their own, so
that the student's optimizer, checkpoint, average and export hold the student alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import paddle.distributed as dist
from paddle import Tensor
from paddle.nn import Conv2D, Layer
from paddle.utils import unique_name
from ppdet.core.workspace import create

from slim_det.compress.tensors import differing, summary
from slim_det.core.errors import WeightsError
from slim_det.core.paddle_files import read_state

PEER_PREFIX = "peer."
_PARAMETER, _SLOT = "parameter/", "optimizer/"


def make_adaptor(number: int, channels: int, wanted: int) -> Conv2D:
    """A 1x1 convolution from a student's channels to a teacher's, without bias.

    The regressor of Romero et al., arXiv 1412.6550. ``number`` is part of its parameter's name.
    """
    with unique_name.guard():
        adaptor = Conv2D(channels, wanted, 1, bias_attr=False)
    # Named afterwards: Paddle refuses a name that any layer of this process has ever had.
    adaptor.weight.name = f"distill_adaptor_{number}.w_0"
    return adaptor


def make_context(number: int, make: Callable[[int], Layer], channels: int) -> Layer:
    """What a loss learns itself, for maps of some channels; ``number`` is part of its names."""
    with unique_name.guard():
        context = make(channels)
    for index, parameter in enumerate(context.parameters()):
        parameter.name = f"distill_context_{number}_{index}.w_0"
    return context


def make_peer(teacher: Layer) -> Layer:
    """Unfreeze a teacher, and give its parameters names that no student has.

    An optimizer keys its state by the automatic names, which are the same in both models.
    Parameters with a learning rate of 0, and the statistics of batch norm, stay frozen.
    """
    norms = [x for x in teacher.sublayers() if isinstance(x, paddle.nn.layer.norm._BatchNormBase)]
    statistics = {id(tensor) for norm in norms for tensor in (norm._mean, norm._variance)}
    for parameter in teacher.parameters():
        is_fixed = parameter.optimize_attr.get("learning_rate") == 0
        parameter.stop_gradient = is_fixed or id(parameter) in statistics
        if not parameter.name.startswith(PEER_PREFIX):
            parameter.name = PEER_PREFIX + parameter.name
    return teacher


class AuxiliaryModules:
    """Extra parameters with an optimizer of their own, of the kind that trains the student.

    Args:
        modules: Name -> adaptors or contexts.
        peer: A teacher that learns too (see `make_peer`).
        make_optimizer: ``(learning_rate, layer) -> optimizer``; by default ppdet's
            ``OptimizerBuilder``, as configured.
    """

    def __init__(
        self,
        modules: Mapping[str, Layer],
        peer: Layer | None = None,
        make_optimizer: Callable[[float, Layer], Any] | None = None,
    ) -> None:
        self.layer = Layer()
        for name, module in modules.items():
            self.layer.add_sublayer(name, module)
        if peer is not None:
            self.layer.add_sublayer("peer", peer)
        # The rate of every step is the student's; this one is never used.
        self.optimizer = (make_optimizer or create("OptimizerBuilder"))(0.0, self.layer)

    def step(self, learning_rate: float) -> None:
        """Update the parameters that have gradients, then clear these.

        Args:
            learning_rate: The one of the student's step.
        """
        learning = [p for p in self.layer.parameters() if p.grad is not None]
        if not learning:
            return
        _average_gradients(learning)
        self.optimizer.set_lr(float(learning_rate))
        # Slots are named by counters, which start at zero here to be the same in every process.
        with unique_name.guard():
            self.optimizer.step()
        self.optimizer.clear_grad(set_to_zero=False)

    def synchronize(self) -> None:
        """In distributed training, give every process the values of the first one."""
        if dist.get_world_size() > 1:
            for tensor in self.layer.state_dict().values():
                dist.broadcast(tensor, src=0)

    def state_dict(self) -> dict[str, Any]:
        """Parameters and the optimizer's state: name -> tensor."""
        parameters = {_PARAMETER + name: x for name, x in self.layer.state_dict().items()}
        slots = {_SLOT + name: x for name, x in self.optimizer.state_dict().items()}
        slots = {name: x for name, x in slots.items() if isinstance(x, Tensor)}
        return {**parameters, **slots}

    def set_state_dict(self, state: Mapping[str, Any], source: str = "the state") -> None:
        """Load what `state_dict` gave; nothing is changed where it does not fit.

        Args:
            state: Name -> tensor or array.
            source: Where it came from, for the error.

        Raises:
            WeightsError: A parameter is missing, extra or of another shape, or the optimizer's
                state belongs to no parameter or to another kind of optimizer.
        """
        arrays = {name: np.asarray(value) for name, value in state.items()}
        given = _below(_PARAMETER, arrays)
        mine = self.layer.state_dict()
        differences = differing(_shapes(given), _shapes(mine), "file", "run")
        slots = _below(_SLOT, arrays)
        owners = tuple(f"{parameter.name}_" for parameter in self.layer.parameters())
        strange = [name for name in slots if not name.startswith(owners)]
        differences += [f"optimizer state '{name}' belongs to no parameter" for name in strange]
        if differences:
            raise WeightsError(f"{source} does not fit this distillation: {summary(differences)}")
        made = self._make_slots(set(slots))
        odd = sorted(made.keys() ^ slots.keys())
        if odd:
            raise WeightsError(f"{source} is of another kind of optimizer: '{odd[0]}' differs")
        for name, tensor in {**mine, **made}.items():
            tensor.set_value({**given, **slots}[name])

    def _make_slots(self, names: set[str]) -> dict[str, Any]:
        """The optimizer's state for the parameters that these slots belong to, of any value.

        Paddle makes the slots of a parameter in the first step in which it has a gradient. So a
        term that starts later has none in an early checkpoint, and Paddle would refuse that as
        incomplete. A step at rate 0 makes just the slots of the file, and changes no parameter.
        """
        for parameter in self.layer.parameters():
            if any(name.startswith(f"{parameter.name}_") for name in names):
                parameter.grad = paddle.zeros_like(parameter)
        self.step(0.0)
        return {k: x for k, x in self.optimizer.state_dict().items() if isinstance(x, Tensor)}

    def resume(self, path: Path) -> None:
        """Load the file that a distiller wrote.

        Raises:
            WeightsError: The file is missing, damaged, or of another distillation.
        """
        if not path.is_file():
            raise WeightsError(
                f"auxiliary modules '{path}' do not exist; a distillation with adaptors or a peer "
                "is resumed from a checkpoint that has them beside it"
            )
        self.set_state_dict(read_state(path), f"'{path}'")


def _average_gradients(parameters: list[Tensor]) -> None:
    """Average over the processes of distributed training, as for the student's gradients."""
    processes = dist.get_world_size()
    if processes > 1:
        for parameter in parameters:
            total = parameter.grad.detach()
            dist.all_reduce(total)
            parameter.grad = total / processes


def _below(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name[len(prefix) :]: x for name, x in arrays.items() if name.startswith(prefix)}


def _shapes(tensors: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in tensors.items()}
