"""Builds the plain lists of operations that `RandomNet` runs, and keeps their shapes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.compress.prune.random_nets import Op

KEEPS_ZERO = ("relu", "relu6", "leaky_relu", "hard_swish", "swish", "tanh")
MIN_SIZE, MAX_SIZE = 3, 14
"""Height and width of a tensor stay between these."""


@dataclass
class Graph:
    """A network, and what it is made of.

    Attributes:
        seed: It was made from.
        ops: Its operations.
        features: Names of its motifs.
        any_size: Whether it runs on images of other sizes too.
    """

    seed: int
    ops: list[Op] = field(default_factory=list)
    features: set[str] = field(default_factory=set)
    any_size: bool = True

    def __str__(self) -> str:
        """All that is needed to build it again."""
        lines = "\n".join(f"    {op!r}," for op in self.ops)
        return f"seed {self.seed}, motifs {sorted(self.features)}\nops = [\n{lines}\n]"


class Builder:
    """Adds operations and keeps their shapes, [C, H, W] or [C].

    Args:
        seed: Everything random follows from it.
    """

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.graph = Graph(seed)
        self.shapes: list[tuple[int, ...]] = []
        shape = (self.pick([1, 3, 3, 4]), self.integer(6, 12), self.integer(6, 12))
        self.image = self.add("image", shape=shape, size=shape)

    def integer(self, low: int, high: int) -> int:
        """A random integer, both ends included."""
        return int(self.rng.integers(low, high + 1))

    def pick(self, choices: Any) -> Any:
        """One of several values."""
        return choices[int(self.rng.integers(len(choices)))]

    def add(self, kind: str, *inputs: int, shape: tuple[int, ...], **settings: Any) -> int:
        """Append an operation; returns its number."""
        self.graph.ops.append((kind, inputs, settings))
        self.shapes.append(shape)
        return len(self.shapes) - 1

    def same(self, kind: str, *inputs: int, **settings: Any) -> int:
        """Append an operation whose result has the shape of its first input."""
        return self.add(kind, *inputs, shape=self.shapes[inputs[0]], **settings)

    def act(self, x: int, name: str = "") -> int:
        """An activation of its own; a random one that maps zero to zero by default."""
        return self.same("act", x, name=name or self.pick(KEEPS_ZERO))

    def conv(self, x: int, out: int = 0, **settings: Any) -> int:
        """Convolution, mostly with batch norm and activation."""
        inside, height, width = self.shapes[x]
        out = out or self.integer(2, 12)
        stride = settings.setdefault("stride", 1)
        settings.setdefault("kernel", self.pick([1, 3]))
        settings.setdefault("groups", 1)
        settings.setdefault("bn", bool(self.rng.random() < 0.6))
        settings.setdefault("bias", bool(self.rng.random() < 0.4))
        settings.setdefault("act", self.pick(["", *KEEPS_ZERO]))
        shape = (out, -(-height // stride), -(-width // stride))
        return self.add("conv", x, shape=shape, inside=inside, out=out, **settings)

    def linear(self, x: int, out: int, act: str = "") -> int:
        """Matrix product on the channels of a vector."""
        (inside,) = self.shapes[x]
        bias = bool(self.rng.random() < 0.5)
        return self.add("linear", x, shape=(out,), inside=inside, out=out, bias=bias, act=act)

    def concat(self, *parts: int) -> int:
        """Concatenation along the channels."""
        channels = sum(self.shapes[part][0] for part in parts)
        return self.add("concat", *parts, shape=(channels, *self.shapes[parts[0]][1:]))

    def shrinks(self, x: int) -> bool:
        """Whether a tensor is large enough to be halved."""
        return min(self.shapes[x][1:]) >= 2 * MIN_SIZE
