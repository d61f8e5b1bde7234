"""Which channels of which tensors must be cut together, as identities that flow with the data.

Every convolution, unless depthwise, gives each of its output channels a new identity. An operator
passes identities on (activation), rearranges them (concat), ties them to others (add), hands them
to a parameter axis (the next convolution's input), or freezes them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from slim_det.graph.op import Op


@dataclass(frozen=True)
class Tracked:
    """The channel axis of one variable.

    Attributes:
        axis: Which axis holds the channels.
        ids: Identity of each channel, int64 [C].
        zero_kept: Whether a channel that is set to zero at its source is zero here, bool [C].
    """

    axis: int
    ids: np.ndarray
    zero_kept: np.ndarray

    @classmethod
    def made(cls, axis: int, ids: np.ndarray) -> Tracked:
        """Channels as a layer makes them: those set to zero are zero."""
        return cls(axis, ids, np.ones(len(ids), bool))

    def moved(self, axis: int) -> Tracked:
        """The same channels on another axis."""
        return Tracked(axis, self.ids, self.zero_kept)

    def repeated(self, times: int) -> Tracked:
        """Every channel several times in a row, as flattening does it."""
        return Tracked(self.axis, self.ids.repeat(times), self.zero_kept.repeat(times))

    def without_zero(self) -> Tracked:
        """The same channels after something that does not map zero to zero."""
        return Tracked(self.axis, self.ids, np.zeros(len(self.ids), bool))


@dataclass(frozen=True)
class ParameterAxis:
    """One axis of a parameter and the identities of its entries.

    ``makes`` is True if the entries make the channels (output filters, bias, batch norm), False
    if they read them (input filters).
    """

    parameter: str
    axis: int
    ids: np.ndarray
    makes: bool


@dataclass
class Producer:
    """A weight that gives channels their identity: a convolution or a linear layer.

    Attributes:
        parameter: Name in the state dict.
        axis: Axis of the output channels.
        ids: Identities of the output channels.
        batch_norm: Scale parameter of the batch norm that reads it directly, '' if none.
        shift: Shift parameter of that batch norm, '' if none.
        bias: Parameter that is added to its output directly, '' if none.
    """

    parameter: str
    axis: int
    ids: np.ndarray
    batch_norm: str = ""
    shift: str = ""
    bias: str = ""


@dataclass
class ChannelGraph:
    """The state of the propagation, and its result.

    Attributes:
        shapes: Variable -> its shape at the traced image size.
        parameters: Variable -> its name in the state dict.
        channels: Variable -> its channels; None, or no entry, if it has none that can be cut.
        axes: (parameter, axis) -> its identities.
        producers: In execution order; a weight used twice appears once.
        depthwise: Weight of a depthwise convolution -> output channels per input channel.
        frozen: (identities, reason) pairs.
        made_by: Variable -> the weight that made exactly it, with or without a bias.
        biases: Variable that is a bias vector on its way to an addition -> name of the bias.
    """

    shapes: Mapping[str, tuple[int, ...]]
    parameters: Mapping[str, str]
    channels: dict[str, Tracked | None] = field(default_factory=dict)
    axes: dict[tuple[str, int], ParameterAxis] = field(default_factory=dict)
    producers: dict[str, Producer] = field(default_factory=dict)
    depthwise: dict[str, int] = field(default_factory=dict)
    frozen: list[tuple[np.ndarray, str]] = field(default_factory=list)
    made_by: dict[str, Producer] = field(default_factory=dict)
    biases: dict[str, str] = field(default_factory=dict)
    _parent: list[int] = field(default_factory=list)

    def fresh(self, count: int) -> np.ndarray:
        """Identities that no other channel has, int64 [count]."""
        first = len(self._parent)
        self._parent.extend(range(first, first + count))
        return np.arange(first, first + count)

    def fixed(self, count: int, reason: str) -> np.ndarray:
        """Identities of channels that nothing can remove (an image, a slice), int64 [count]."""
        ids = self.fresh(count)
        self.frozen.append((ids, reason))
        return ids

    def tie(self, left: np.ndarray, right: np.ndarray) -> None:
        """Make channels be cut together, one by one; both int64 [C]."""
        for a, b in zip(left.tolist(), right.tolist()):
            root_a, root_b = self._find(a), self._find(b)
            if root_a != root_b:
                self._parent[max(root_a, root_b)] = min(root_a, root_b)

    def find(self, ids: np.ndarray) -> np.ndarray:
        """Representative of each identity; channels that are cut together share one."""
        return np.array([self._find(i) for i in ids.tolist()], dtype=np.int64)

    def freeze(self, tracked: Tracked | None, reason: str) -> None:
        """Declare that these channels cannot be cut, and why."""
        if tracked is not None:
            self.frozen.append((tracked.ids, reason))

    def parameter_name(self, variable: str) -> str:
        """Name in the state dict; '' if the variable is not a parameter."""
        return self.parameters.get(variable, "")

    def bind(self, variable: str, axis: int, ids: np.ndarray, *, makes: bool) -> np.ndarray:
        """Hand identities to a parameter axis; a second use ties both.

        Returns:
            The identities that the axis has had since its first use.
        """
        name = self.parameter_name(variable)
        known = self.axes.get((name, axis))
        if known is None:
            self.axes[name, axis] = ParameterAxis(name, axis, ids, makes)
            return ids
        self.tie(known.ids, ids)
        return known.ids

    def produce(self, weight: str, axis: int, output: str) -> np.ndarray:
        """Register a weight that makes the channels of variable ``output`` along its ``axis``."""
        name = self.parameter_name(weight)
        if name not in self.producers:
            ids = self.bind(weight, axis, self.fresh(self.shapes[weight][axis]), makes=True)
            self.producers[name] = Producer(name, axis, ids)
        self.made_by[output] = self.producers[name]
        return self.producers[name].ids

    def _find(self, i: int) -> int:
        parent = self._parent
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i


Rule = Callable[[ChannelGraph, Op], "Tracked | list[Tracked] | None"]
"""Returns the channels of an operator's output, or of all its outputs in order."""


def unknown(graph: ChannelGraph, op: Op) -> Tracked | None:
    """The rule of operators that may do anything with their channels: freezes all of them."""
    reason = f"it is read by operator '{op.type}', for which no channel rule is declared"
    for variable in op.input_arg_names:
        graph.freeze(graph.channels.get(variable), reason)
    return None


def of_one_input(
    rule: Callable[[ChannelGraph, Op, Tracked], Tracked | None],
) -> Callable[[ChannelGraph, Op], Tracked | None]:
    """Make a rule from what an operator does with the channels of its one input, if any."""

    def applied(graph: ChannelGraph, op: Op) -> Tracked | None:
        tracked = graph.channels.get(op.input("X") or op.input("Input"))
        return None if tracked is None else rule(graph, op, tracked)

    return applied
