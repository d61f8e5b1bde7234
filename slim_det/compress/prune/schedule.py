"""The schedule of a pruning in steps: what a user writes, and what a plan keeps of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from slim_det.compress.prune.groups import ModelGroups
from slim_det.compress.prune.ratios import even_progress, progress_by_macs, ratio_at, units_removed
from slim_det.core.errors import ConfigError, PlanError
from slim_det.core.schema import check_keys, whole_number


@dataclass(frozen=True)
class Schedule:
    """How ratios are reached in steps, with training after each.

    Attributes:
        epochs: Epochs of training after each step.
        steps: Number of steps, each of which removes the same share of the channels that are left;
            None if ``macs_per_step`` decides.
        macs_per_step: Share of the original MACs that each step removes.
        restart_lr: Whether the learning rate starts again after each step, so that each is followed
            by the first ``epochs`` epochs of the configured schedule.
    """

    epochs: int
    steps: int | None = None
    macs_per_step: float | None = None
    restart_lr: bool = False

    def asked(self) -> dict[str, Any]:
        """Its keys in a slim file, without those that are not set."""
        return {key: value for key, value in asdict(self).items() if value}


def read_schedule(value: Any) -> Schedule | None:
    """Read ``Pruner.schedule``; None if there is none.

    Raises:
        ConfigError: A key is unknown, missing, or not valid.
    """
    if value is None:
        return None
    where = "Pruner.schedule"
    check_keys(value, ("epochs", "steps", "macs_per_step", "restart_lr"), where)
    if ("steps" in value) == ("macs_per_step" in value) or "epochs" not in value:
        raise ConfigError(
            f"{where}: expected epochs, and either steps or macs_per_step, found "
            f"{', '.join(map(str, value)) or 'nothing'}"
        )
    epochs = whole_number(f"{where}.epochs", value["epochs"], 1)
    restart_lr = value.get("restart_lr", False)
    if not isinstance(restart_lr, bool):
        raise ConfigError(
            f"{where}.restart_lr: {restart_lr!r} is not valid; expected true or false"
        )
    if "steps" in value:
        steps = whole_number(f"{where}.steps", value["steps"], 2)
        return Schedule(epochs, steps=steps, restart_lr=restart_lr)
    share = value["macs_per_step"]
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share < 1:
        raise ConfigError(
            f"{where}.macs_per_step: {share!r} is not valid; expected a number between 0 and 1, "
            "both excluded"
        )
    return Schedule(epochs, macs_per_step=float(share), restart_lr=restart_lr)


@dataclass(frozen=True)
class Steps:
    """The steps of a schedule for one model, as its plan keeps them.

    Attributes:
        asked: The schedule in the keys of a slim file.
        kept: Group name -> units that are left after each step.
        done: Steps that the model has had.
    """

    asked: dict[str, Any]
    kept: dict[str, list[int]]
    done: int = 0

    def __post_init__(self) -> None:
        """Check what a file says.

        Raises:
            ValueError: It contradicts itself.
        """
        counts = {len(after) for after in self.kept.values()}
        if len(counts) != 1 or not 0 <= self.done <= self.count or self.asked["epochs"] < 1:
            raise ValueError("its schedule is not valid")

    @property
    def count(self) -> int:
        """Number of steps."""
        return max(len(after) for after in self.kept.values())

    @property
    def is_complete(self) -> bool:
        """Whether no step is left."""
        return self.done == self.count

    @property
    def total_epochs(self) -> int:
        """Epochs of training with those after the last step."""
        return self.count * self.asked["epochs"]

    def due(self, epoch: int) -> int:
        """Steps that a model has had when an epoch begins, counted from 0."""
        return min(self.count, 1 + epoch // self.asked["epochs"])

    def next_ratios(self, groups: ModelGroups) -> dict[str, float]:
        """Group name -> share of its units that the next step removes, for groups that lose any.

        Args:
            groups: The groups of the model as it is now.
        """
        ratios = {}
        for name, after in self.kept.items():
            units = len(groups.groups[name].units)
            if units > after[self.done]:
                ratios[name] = (units - after[self.done]) / units
        return ratios


def divide(
    schedule: Schedule,
    units: Mapping[str, int],
    ratios: Mapping[str, float],
    align: int,
    macs_of: Callable[[Mapping[str, int]], float],
) -> Steps:
    """Divide ratios into the steps of a schedule.

    After the last step every group has the units that a single cut by its ratio leaves.

    Args:
        schedule: How to divide them.
        units: Group name -> units before the first step.
        ratios: Group name -> share of them to remove in the end.
        align: See `units_removed`.
        macs_of: Group name -> units left, to the MACs of that model.

    Raises:
        PlanError: A step would remove nothing.
    """

    def left(progress: float) -> dict[str, int]:
        shares = {name: ratio_at(ratio, progress) for name, ratio in ratios.items()}
        return {n: units[n] - units_removed(units[n], shares[n], align) for n in ratios}

    if schedule.steps is not None:
        progress = even_progress(schedule.steps)
    else:
        share = float(schedule.macs_per_step or 0)
        progress = progress_by_macs(lambda at: macs_of(left(at)), macs_of(units), share)
    after = [left(at) for at in progress]
    before = [dict(units), *after]
    for step, (earlier, later) in enumerate(zip(before, after), 1):
        if all(later[name] == earlier[name] for name in ratios):
            raise PlanError(
                f"Pruner.schedule: step {step} of {len(after)} would remove no channel; expected "
                "fewer steps or larger ratios"
            )
    return Steps(schedule.asked(), {name: [step[name] for step in after] for name in ratios})
