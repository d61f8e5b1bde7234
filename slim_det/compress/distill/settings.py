"""Settings of a distillation: which losses act on which layers, how strongly, and when."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from slim_det.compress.distill.losses import LOSSES, Loss
from slim_det.core.errors import ConfigError, nearest

_SCHEDULE_KEYS = ("start_epoch", "end_epoch", "ramp_epochs")
_PAIR_KEYS = ("student", "teacher", "loss", "weight", "temperature", *_SCHEDULE_KEYS)


@dataclass(frozen=True)
class Schedule:
    """When a term acts.

    Attributes:
        start_epoch: First epoch in which it acts; epochs count from 0.
        end_epoch: First epoch in which it no longer acts; None for to the end.
        ramp_epochs: Epochs over which its weight grows before it is full.
    """

    start_epoch: int = 0
    end_epoch: int | None = None
    ramp_epochs: int = 0

    def factor(self, epoch: int) -> float:
        """Share of the weight in an epoch.

        Args:
            epoch: Counted from 0.

        Returns:
            0 outside ``start_epoch <= epoch < end_epoch``; inside it
            ``(epoch - start_epoch + 1) / (ramp_epochs + 1)``, at most 1.
        """
        if epoch < self.start_epoch or (self.end_epoch is not None and epoch >= self.end_epoch):
            return 0.0
        return min(1.0, (epoch - self.start_epoch + 1) / (self.ramp_epochs + 1))


@dataclass(frozen=True)
class Term:
    """One term that a distillation adds to the student's loss.

    Attributes:
        name: Unique among the terms: the loss, numbered from 0 where several terms share it.
        loss: Key of `slim_det.compress.distill.losses.LOSSES`.
        student: The student's layer as the user spelled it; None for the raw YOLO outputs.
        teacher: The teacher's layer; None for the raw YOLO outputs.
        weight: Factor of the term in the total loss, above 0.
        temperature: Of the softmax; 1 where the loss has none.
        schedule: When it acts.
    """

    name: str
    loss: str
    student: str | None
    teacher: str | None
    weight: float
    temperature: float
    schedule: Schedule


def read_terms(
    loss: str | None = "l2",
    weight: float | None = None,
    pairs: Sequence[Mapping[str, Any]] | None = None,
    start_epoch: int = 0,
    end_epoch: int | None = None,
    ramp_epochs: int = 0,
) -> tuple[Term, ...]:
    """Turn what a slim file says under `Distill` into terms.

    Args:
        loss: Loss of the raw YOLO outputs; None for none.
        weight: Its weight; None for the published one.
        pairs: More terms, each a mapping with ``loss``, the layers ``student`` and ``teacher``
            (not for a loss of the YOLO outputs) and, where wanted, ``weight``, ``temperature``
            and a schedule of its own.
        start_epoch: First epoch of every term that does not say otherwise.
        end_epoch: First epoch without them; None for to the end.
        ramp_epochs: Epochs over which their weights grow.

    Returns:
        The term of the YOLO outputs first, then one for each pair in order.

    Raises:
        ConfigError: A key, a name or a value is not valid, or there is no term at all.
    """
    shared = {"start_epoch": start_epoch, "end_epoch": end_epoch, "ramp_epochs": ramp_epochs}
    schedule = _read_schedule("Distill", shared)
    terms: list[Term] = []
    if loss is not None:
        terms.append(_read_output_term(loss, weight, schedule))
    elif weight is not None:
        raise ConfigError(f"Distill: weight: {weight!r} is given for no loss; give a loss too")
    if pairs is not None and (isinstance(pairs, (str, Mapping)) or not isinstance(pairs, Sequence)):
        raise ConfigError(f"Distill: pairs: expected a list of pairs of layers, got {pairs!r}")
    for index, pair in enumerate(pairs or ()):
        terms.append(_read_pair(f"Distill: pairs[{index}]", pair, shared))
    if not terms:
        raise ConfigError(
            "Distill: neither a loss of the YOLO outputs nor pairs of layers are given; expected "
            f"loss: {_choices(on_outputs=True)}, or pairs: [{{student: LAYER, teacher: LAYER, "
            f"loss: {_choices(on_outputs=False)}}}]"
        )
    return tuple(_named(terms))


def _read_output_term(loss: Any, weight: Any, schedule: Schedule) -> Term:
    entry = _find_loss("Distill: loss", loss)
    if not entry.on_yolo_outputs:
        raise ConfigError(
            f"Distill: loss: '{loss}' compares layers, not YOLO outputs; expected "
            f"{_choices(on_outputs=True)}, or give '{loss}' in pairs with its layers"
        )
    number = _positive("Distill: weight", entry.weight if weight is None else weight)
    return Term(loss, loss, None, None, number, entry.temperature or 1.0, schedule)


def _read_pair(where: str, pair: Any, shared: Mapping[str, Any]) -> Term:
    if not isinstance(pair, Mapping):
        raise ConfigError(
            f"{where}: expected {{student: LAYER, teacher: LAYER, loss: NAME}}, got {pair!r}"
        )
    for key in pair:
        if key not in _PAIR_KEYS:
            raise ConfigError(f"{where}: unknown key '{key}'{nearest(str(key), _PAIR_KEYS)}")
    if pair.get("loss") is None:
        raise ConfigError(f"{where}: no loss is given; expected one of {', '.join(LOSSES)}")
    loss = pair["loss"]
    entry = _find_loss(f"{where}: loss", loss)
    student, teacher = _read_layers(where, pair, loss, entry)
    weight, temperature = pair.get("weight"), pair.get("temperature")
    if temperature is not None and entry.temperature is None:
        having = ", ".join(key for key, other in LOSSES.items() if other.temperature is not None)
        raise ConfigError(
            f"{where}: temperature: loss '{loss}' has none; leave it out, or take a loss with one: "
            f"{having}"
        )
    temperature = entry.temperature if temperature is None else temperature
    return Term(
        loss,
        loss,
        student,
        teacher,
        _positive(f"{where}: weight", entry.weight if weight is None else weight),
        1.0 if temperature is None else _positive(f"{where}: temperature", temperature),
        _read_schedule(where, {key: pair.get(key, shared[key]) for key in _SCHEDULE_KEYS}),
    )


def _read_layers(
    where: str, pair: Mapping[str, Any], loss: str, entry: Loss
) -> tuple[str | None, str | None]:
    """The two layers of a pair: both, or none where the loss reads the YOLO outputs."""
    for side in ("student", "teacher"):
        layer = pair.get(side)
        if entry.on_yolo_outputs and layer is not None:
            raise ConfigError(
                f"{where}: {side}: loss '{loss}' reads the YOLO outputs and no layer; leave "
                f"'{layer}' out, or take a loss of layers: {_choices(on_outputs=False)}"
            )
        if not entry.on_yolo_outputs and layer is None:
            raise ConfigError(f"{where}: {side}: no layer is given; loss '{loss}' compares two")
        if layer is not None and (not isinstance(layer, str) or not layer):
            raise ConfigError(f"{where}: {side}: expected the name of a layer, got {layer!r}")
    return pair.get("student"), pair.get("teacher")


def _find_loss(where: str, name: Any) -> Loss:
    if not isinstance(name, str) or name not in LOSSES:
        raise ConfigError(f"{where}: unknown loss {name!r}{nearest(str(name), LOSSES)}")
    return LOSSES[name]


def _read_schedule(where: str, values: Mapping[str, Any]) -> Schedule:
    start, end, ramp = (values[key] for key in _SCHEDULE_KEYS)
    for key in _SCHEDULE_KEYS:
        value = values[key]
        if key == "end_epoch" and value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ConfigError(f"{where}: {key}: expected a whole number >= 0, got {value!r}")
    if end is not None and end <= start:
        raise ConfigError(f"{where}: end_epoch: expected more than start_epoch {start}, got {end}")
    return Schedule(start, end, ramp)


def _positive(where: str, value: Any) -> float:
    """A finite number above 0; text such as 1e3, which YAML does not read as a number, too."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0.0 < number < math.inf:
        raise ConfigError(f"{where}: expected a number above 0, got {value!r}")
    return number


def _named(terms: Sequence[Term]) -> list[Term]:
    """The terms, numbered where several have the same loss."""
    uses, seen = Counter(term.loss for term in terms), Counter[str]()
    named = []
    for term in terms:
        name = term.loss if uses[term.loss] == 1 else f"{term.loss}_{seen[term.loss]}"
        seen[term.loss] += 1
        named.append(replace(term, name=name))
    return named


def _choices(*, on_outputs: bool) -> str:
    names = [name for name, entry in LOSSES.items() if entry.on_yolo_outputs is on_outputs]
    return ", ".join(names[:-1]) + f" or {names[-1]}"
