"""Settings of a distillation: which losses act on which layers, how strongly, and when."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Optional

from pydantic import AfterValidator, BeforeValidator, Field, Strict, ValidationInfo

from slim_det.compress.distill.loss import Loss
from slim_det.compress.distill.losses import LOSSES
from slim_det.core.errors import ConfigError, nearest
from slim_det.core.schema import Switch, check_keys, validated

_SCHEDULE_KEYS = ("start_epoch", "end_epoch", "ramp_epochs")
_PAIR_KEYS = (
    *("student", "teacher", "loss", "weight", "temperature", "normalize", "factors"),
    *_SCHEDULE_KEYS,
)


def _after_start(end: int | None, info: ValidationInfo) -> int | None:
    start = info.data.get("start_epoch", 0)
    if end is not None and end <= start:
        raise ValueError(f"expected more than start_epoch {start}, got {end}")
    return end


def _none_for_bool(value: Any) -> Any:
    return None if isinstance(value, bool) else value


Epoch = Annotated[int, Strict(), Field(ge=0, description="a whole number >= 0")]
EndEpoch = Annotated[
    Optional[Epoch], AfterValidator(_after_start), Field(description="a whole number >= 0")
]
LayerName = Annotated[
    Optional[Annotated[str, Strict(), Field(min_length=1)]],
    Field(description="the name of a layer"),
]
# Text such as 1e3, which YAML does not read as a number, is one here.
Factor = Annotated[
    float,
    BeforeValidator(_none_for_bool),
    Field(gt=0, allow_inf_nan=False, description="a number above 0"),
]
PartFactor = Annotated[
    float,
    BeforeValidator(_none_for_bool),
    Field(ge=0, allow_inf_nan=False, description="a number >= 0"),
]
Factors = Annotated[dict[str, PartFactor], Field(description="numbers >= 0")]


@dataclass(frozen=True)
class Schedule:
    """When a term acts.

    Attributes:
        start_epoch: First epoch in which it acts; epochs count from 0.
        end_epoch: First epoch in which it no longer acts; None where it acts to the end.
        ramp_epochs: Epochs over which its weight grows before it is full.
    """

    start_epoch: Epoch = 0
    end_epoch: EndEpoch = None
    ramp_epochs: Epoch = 0

    def factor(self, epoch: int) -> float:
        """Share of the weight in an epoch.

        It is 0 outside ``start_epoch <= epoch < end_epoch``; inside it is
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
        student: The student's layer as the user spelled it; None where the loss reads none.
        teacher: The teacher's layer; None where the loss reads none.
        weight: Factor of the term in the total loss, above 0.
        temperature: Of the softmax; 1 where the loss has none.
        schedule: When it acts.
        normalize: Whether every channel gets mean 0 and deviation 1 before it is compared.
        factors: Factors of the parts of the loss, by name; empty where it has none.
    """

    name: str
    loss: str
    student: LayerName
    teacher: LayerName
    weight: Factor
    temperature: Factor
    schedule: Schedule
    normalize: Switch = False
    factors: Factors = field(default_factory=dict)


def read_terms(
    loss: str | None = "l2",
    weight: float | None = None,
    pairs: Sequence[Mapping[str, Any]] | None = None,
    factors: Mapping[str, Any] | None = None,
    **schedule: Any,
) -> tuple[Term, ...]:
    """Turn what a slim file says under `Distill` into terms.

    Args:
        loss: Loss of the outputs; None for none.
        weight: Its weight; None for the published one.
        pairs: More terms, each a mapping with ``loss``, the layers ``student`` and ``teacher``
            (not for a loss of the outputs) and optionally ``weight``, ``temperature``,
            ``normalize``, ``factors`` and a schedule of its own.
        factors: Factors of the parts of ``loss``; None for its defaults.
        schedule: Fields of `Schedule`, for every term that does not give its own.

    Returns:
        The term of the outputs first, then one for each pair in order.

    Raises:
        ConfigError: A key, a name or a value is not valid, or there is no term at all.
    """
    validated(Schedule, schedule, "Distill: ")
    terms: list[Term] = []
    if loss is not None:
        if _find_loss("Distill: loss", loss).of_layers:
            raise ConfigError(
                f"Distill: loss: '{loss}' compares layers, not outputs; expected "
                f"{_choices(of_layers=False)}, or give '{loss}' in pairs with its layers"
            )
        own = {"loss": loss, "weight": weight, "factors": factors}
        terms.append(_read_term("Distill", {**schedule, **own}))
    elif weight is not None:
        raise ConfigError(f"Distill: weight: {weight!r} is given for no loss; give a loss too")
    if pairs is not None and (isinstance(pairs, (str, Mapping)) or not isinstance(pairs, Sequence)):
        raise ConfigError(f"Distill: pairs: expected a list of pairs of layers, got {pairs!r}")
    for index, pair in enumerate(pairs or ()):
        where = f"Distill: pairs[{index}]"
        if not isinstance(pair, Mapping):
            raise ConfigError(
                f"{where}: expected {{student: LAYER, teacher: LAYER, loss: NAME}}, got {pair!r}"
            )
        check_keys(pair, _PAIR_KEYS, where)
        terms.append(_read_term(where, {**schedule, **pair}))
    if not terms:
        raise ConfigError(
            "Distill: neither a loss of the outputs nor pairs of layers are given; expected "
            f"loss: {_choices(of_layers=False)}, or pairs: [{{student: LAYER, teacher: LAYER, "
            f"loss: {_choices(of_layers=True)}}}]"
        )
    return tuple(_named(terms))


@dataclass(frozen=True)
class _OneFactor:
    factor: Factor


def read_factor(where: str, value: Any) -> float:
    """A factor above 0.

    Raises:
        ConfigError: It is none; the message begins with ``where``.
    """
    return validated(_OneFactor, {"factor": value}, "", spelled={"factor": where}).factor


def _read_term(where: str, given: Mapping[str, Any]) -> Term:
    loss = given.get("loss")
    if loss is None:
        raise ConfigError(f"{where}: no loss is given; expected one of {', '.join(LOSSES)}")
    entry = _find_loss(f"{where}: loss", loss)
    _check_layers(where, given, loss, entry)
    if given.get("temperature") is not None and entry.temperature is None:
        having = ", ".join(key for key, other in LOSSES.items() if other.temperature is not None)
        raise ConfigError(
            f"{where}: temperature: loss '{loss}' has none; leave it out, or take a loss with one: "
            f"{having}"
        )
    if given.get("normalize") and not entry.of_layers:
        raise ConfigError(
            f"{where}: normalize: loss '{loss}' compares outputs, which mean something as they "
            "are; leave it out"
        )
    values = {
        "name": loss,
        "student": None,
        "teacher": None,
        "weight": entry.weight,
        "temperature": entry.temperature or 1.0,
        **{key: value for key, value in given.items() if value is not None},
        "factors": _read_factors(where, given.get("factors"), loss, entry),
        "schedule": validated(Schedule, given, f"{where}: "),
    }
    return validated(Term, values, f"{where}: ")


def _read_factors(where: str, given: Any, loss: str, entry: Loss) -> dict[str, Any]:
    """Every factor of a loss: those that are given, and defaults for the others."""
    if given is not None and not entry.factors:
        having = ", ".join(key for key, other in LOSSES.items() if other.factors)
        raise ConfigError(
            f"{where}: factors: loss '{loss}' has one part; leave them out, or take a loss with "
            f"several: {having}"
        )
    if given is not None:
        check_keys(given, entry.factors, f"{where}: factors")
    return {**entry.factors, **(given or {})}


def _check_layers(where: str, given: Mapping[str, Any], loss: str, entry: Loss) -> None:
    """Both layers have to be given, or neither where the loss reads the outputs."""
    for side in ("student", "teacher"):
        layer = given.get(side)
        if not entry.of_layers and layer is not None:
            raise ConfigError(
                f"{where}: {side}: loss '{loss}' reads the outputs and no layer; leave "
                f"'{layer}' out, or take a loss of layers: {_choices(of_layers=True)}"
            )
        if entry.of_layers and layer is None:
            raise ConfigError(f"{where}: {side}: no layer is given; loss '{loss}' compares two")


def _find_loss(where: str, name: Any) -> Loss:
    if not isinstance(name, str) or name not in LOSSES:
        raise ConfigError(f"{where}: unknown loss {name!r}{nearest(str(name), LOSSES)}")
    return LOSSES[name]


def _named(terms: Sequence[Term]) -> list[Term]:
    """The terms, numbered where several have the same loss."""
    uses, seen = Counter(term.loss for term in terms), Counter[str]()
    named = []
    for term in terms:
        name = term.loss if uses[term.loss] == 1 else f"{term.loss}_{seen[term.loss]}"
        seen[term.loss] += 1
        named.append(replace(term, name=name))
    return named


def _choices(*, of_layers: bool) -> str:
    names = [name for name, entry in LOSSES.items() if entry.of_layers is of_layers]
    return ", ".join(names[:-1]) + f" or {names[-1]}"
