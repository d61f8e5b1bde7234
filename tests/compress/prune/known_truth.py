"""What can be cut of a `RandomNet`, worked out from its list of operations alone.

Every channel carries a label. Channels that must go together have their labels linked, and
what follows from the links is found by walking them at the end. Nothing of slim_det is used.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tests.compress.prune.random_nets import Op


@dataclass(frozen=True)
class Truth:
    """The layers of a network that share channels.

    Attributes:
        weights: Names of their weights.
        units: How many channels (or sets of linked channels) could be removed one by one.
        frozen: Whether something forbids it.
        parts: Units that each weight holds.
    """

    weights: frozenset[str]
    units: int
    frozen: bool
    parts: tuple[frozenset[int], ...]

    @property
    def prunable(self) -> bool:
        """Whether anything of it may go."""
        return not self.frozen and self.units > 1


@dataclass
class Channels:
    """Labels of a tensor's channels, and whether each one stays zero once it was made zero."""

    labels: list[int]
    clean: list[bool]


@dataclass
class _Walk:
    links: list[set[int]] = field(default_factory=list)
    stuck: set[int] = field(default_factory=set)
    makers: dict[str, list[int]] = field(default_factory=dict)
    readers: dict[str, list[int]] = field(default_factory=dict)

    def new(self, count: int) -> list[int]:
        """Labels that nothing is linked with yet."""
        first = len(self.links)
        self.links += [set() for _ in range(count)]
        return list(range(first, first + count))

    def link(self, left: Iterable[int], right: Iterable[int]) -> None:
        """The channels go together, one by one."""
        for a, b in zip(left, right):
            self.links[a].add(b)
            self.links[b].add(a)

    def link_parts(self, labels: list[int], parts: int) -> None:
        """The n-th channels of all equal parts go together."""
        size = len(labels) // parts
        for start in range(size, len(labels), size):
            self.link(labels[:size], labels[start : start + size])

    def component(self, label: int) -> frozenset[int]:
        """All labels that are linked with one."""
        seen, waiting = {label}, [label]
        while waiting:
            for other in self.links[waiting.pop()] - seen:
                seen.add(other)
                waiting.append(other)
        return frozenset(seen)


def _link_neighbours(walk: _Walk, labels: list[int], parts: int) -> None:
    """All channels of one part go together."""
    size = len(labels) // parts
    for start in range(0, len(labels), size):
        walk.link(labels[start : start + size - 1], labels[start + 1 : start + size])


def _made(labels: list[int]) -> Channels:
    return Channels(labels, [True] * len(labels))


def _read(walk: _Walk, name: str, given: Channels, settings: dict[str, Any]) -> None:
    """A layer with weights for its input channels."""
    unclean = [label for label, clean in zip(given.labels, given.clean) if not clean]
    walk.stuck.update(unclean)
    walk.link_parts(given.labels, settings.get("groups", 1))
    walk.link(walk.readers.setdefault(name, given.labels), given.labels)


def _layer(walk: _Walk, name: str, given: Channels, settings: dict[str, Any]) -> Channels:
    _read(walk, name, given, settings)
    if name not in walk.makers:
        walk.makers[name] = walk.new(settings["out"])
        walk.link_parts(walk.makers[name], settings.get("groups", 1))
    return _made(walk.makers[name])


def _depthwise(walk: _Walk, name: str, given: Channels, settings: dict[str, Any]) -> Channels:
    _read(walk, name, given, {})
    return _made([label for label in given.labels for _ in range(settings["multiplier"])])


def _joined(walk: _Walk, kind: str, left: Channels, right: Channels) -> Channels:
    """Sum, product, ... of two tensors; a single channel is spread over all of the other."""
    wide, narrow = sorted((left, right), key=lambda c: len(c.labels), reverse=True)
    if len(narrow.labels) < len(wide.labels):
        walk.stuck.update(narrow.labels)
        return Channels(wide.labels, [kind == "mul" and clean for clean in wide.clean])
    walk.link(left.labels, right.labels)
    both = zip(left.clean, right.clean)
    clean = [(a or b) if kind == "mul" else (a and b) for a, b in both]
    return Channels(left.labels, [True] if len(clean) == 1 else clean)


def _pieces(walk: _Walk, kind: str, given: Channels, settings: dict[str, Any]) -> list[Channels]:
    count = len(given.labels)
    if kind == "split":
        walk.link_parts(given.labels, settings["parts"])
        sizes = [count // settings["parts"]] * settings["parts"]
    else:
        walk.stuck.update(given.labels)
        sizes = settings["sizes"]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [
        Channels(given.labels[s : s + size], given.clean[s : s + size])
        for s, size in zip(starts, sizes)
    ]


def _without_weights(walk: _Walk, kind: str, given: list[Any], settings: dict[str, Any]) -> Any:
    first = given[0]
    if kind in ("split", "sections"):
        return _pieces(walk, kind, first, settings)
    if kind == "part":
        return first[settings["index"]]
    if kind in ("add", "sub", "mul", "max"):
        return _joined(walk, kind, *given)
    if kind == "concat":
        labels = [label for side in given for label in side.labels]
        return Channels(labels, [clean for side in given for clean in side.clean])
    if kind in ("output", "softmax", "cumsum", "channels", "shuffle"):
        walk.stuck.update(first.labels)
    if kind == "channels":
        start, stop = settings["start"], settings["stop"]
        return Channels(first.labels[start:stop], first.clean[start:stop])
    if kind == "shuffle":
        size = len(first.labels) // settings["parts"]
        order = [place for i in range(size) for place in range(i, len(first.labels), size)]
        return Channels([first.labels[i] for i in order], [first.clean[i] for i in order])
    if kind == "flatten":
        # Every channel becomes as many numbers as it has pixels.
        times = settings["pixels"]
        labels = [label for label in first.labels for _ in range(times)]
        return Channels(labels, [clean for clean in first.clean for _ in range(times)])
    lost = (
        kind == "act" and settings["name"] in ("sigmoid", "hard_sigmoid")
        or kind == "affine" and settings["shift"] != 0.0
        or kind == "pad" and settings["value"] != 0.0
    )  # fmt: skip
    if kind in ("softmax", "cumsum"):
        first = _made(first.labels)
    return Channels(first.labels, [clean and not lost for clean in first.clean])


def _walk(ops: list[Op]) -> _Walk:
    walk = _Walk()
    values: list[Any] = [_made(walk.new(ops[0][2]["size"][0]))]
    walk.stuck.update(values[0].labels)
    for number, (kind, inputs, settings) in list(enumerate(ops))[1:]:
        given = [values[i] for i in inputs]
        name = f"{kind}{settings.get('same_as', number)}.weight"
        if kind in ("conv", "deconv", "linear"):
            values.append(_layer(walk, name, given[0], settings))
        elif kind in ("depthwise", "depthwise_deconv"):
            values.append(_depthwise(walk, name, given[0], settings))
        elif kind == "bn":
            values.append(_made(given[0].labels))
        elif kind == "group_norm":
            _link_neighbours(walk, given[0].labels, settings["groups"])
            values.append(_made(given[0].labels))
        elif kind == "prelu":
            values.append(given[0])
        else:
            values.append(_without_weights(walk, kind, given, settings))
    return walk


def known_truth(ops: list[Op]) -> list[Truth]:
    """Find which layers share channels, and which of them cannot be cut."""
    walk = _walk(ops)
    units = {name: {walk.component(i) for i in made} for name, made in walk.makers.items()}
    bundles: list[set[str]] = []
    for name, own in units.items():
        touching = [b for b in bundles if any(units[other] & own for other in b)]
        bundles = [b for b in bundles if b not in touching] + [{name}.union(*touching)]
    found = []
    for bundle in bundles:
        every = set().union(*(units[name] for name in bundle))
        frozen = any(component & walk.stuck for component in every)
        parts = tuple(frozenset(min(c) for c in units[name]) for name in sorted(bundle))
        found.append(Truth(frozenset(bundle), len(every), frozen, parts))
    return found
