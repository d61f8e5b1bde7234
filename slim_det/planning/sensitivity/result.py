"""The result of a sensitivity analysis, and its file."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional, TypeVar

from pydantic import Field

from slim_det.core.errors import SensitivityError, SlimDetError
from slim_det.core.files import read_json, write_json
from slim_det.core.schema import validated
from slim_det.planning.sensitivity.fields import (
    Aps,
    Baseline,
    Channels,
    Count,
    Digest,
    GroupOrder,
    ImageSize,
    Losses,
    Name,
    OptionalCount,
    Points,
    Ratios,
    Seconds,
    Seed,
    Shard,
)
from slim_det.planning.sensitivity.grid import key_of
from slim_det.version import __version__

if TYPE_CHECKING:
    from rich.table import Table

SCHEMA = "slim_det.sensitivity/1"

RECONSTRUCTION_ERROR = "reconstruction_error"
"""The metric of losses that are errors of the layers that read a group."""

DETECTION_ERROR = "detection_error"
"""The metric of losses that are changes of scores and boxes."""

WITHOUT_EVALUATION = (RECONSTRUCTION_ERROR, DETECTION_ERROR)

T = TypeVar("T")


@dataclass(frozen=True)
class Conditions:
    """How the losses were measured.

    Attributes:
        metric: As in `slim_det.evaluate.evaluation.EvalResult`; ``unknown`` for imported files.
        baseline: The metric of the unpruned model, 0 to 1; None for imported files.
        num_images: Images evaluated for each point; None for imported files.
        criterion: Which channels were cut; a name in `slim_det.compress.prune.importance.CRITERIA`.
        image_size_hw: Of the scaled images, in pixels.
    """

    metric: Name
    baseline: Baseline
    num_images: OptionalCount
    criterion: Name
    image_size_hw: ImageSize = None


@dataclass(frozen=True)
class Sources:
    """SHA-256 in hexadecimal digits of what was measured; None if unknown.

    Attributes:
        fingerprint: Of the model, as `slim_det.compress.tensors.fingerprint` gives it.
        weights_sha256: Of the weights.
        data_sha256: Of the annotations and images.
        config_sha256: Of the settings that the result depends on.
    """

    fingerprint: Digest = None
    weights_sha256: Digest = None
    data_sha256: Digest = None
    config_sha256: Digest = None


@dataclass(frozen=True)
class Request:
    """What was requested of this run and of its other shards.

    Attributes:
        group_order: Names of all groups, in the order of execution.
        ratios: The grid, shares of channels removed, ascending.
        channels: Group name -> channels before the cut; some groups may be missing.
        shard: ``2/4`` for the second of four parts, ``1/4+2/4`` for an incomplete merge; None for
            a complete result.
    """

    group_order: GroupOrder
    ratios: Ratios
    channels: Channels = field(default_factory=dict)
    shard: Shard = None


@dataclass(frozen=True)
class Bands:
    """The 5th and 95th percentile of every loss over resampled images.

    Attributes:
        samples: Number of resamplings.
        seed: Of the random generator.
        low: 5th percentile of the loss.
        high: 95th percentile of the loss.
    """

    samples: Count
    seed: Seed
    low: Losses
    high: Losses


@dataclass(frozen=True)
class SensitivityResult:
    """The loss of AP for each group and each share of its channels.

    Groups are sorted by execution order, ratios ascending.

    Attributes:
        conditions: How the losses were measured.
        sources: What was measured.
        request: What was requested.
        groups: ``(baseline - ap) / baseline`` of each point; negative where cutting helped.
        ap: The metric of the pruned model, 0 to 1; empty if only losses are known.
        seconds: Wall-clock time, summed over merged runs; 0 for imported files.
        bands: The bootstrap; None if there was none.

    Raises:
        SensitivityError: The tables hold different points, or points that were not requested.
    """

    conditions: Conditions
    sources: Sources
    request: Request
    groups: Points
    ap: Points
    seconds: float = 0.0
    bands: Bands | None = None

    def __post_init__(self) -> None:
        order = self.request.group_order
        for key, names in (("groups", self.groups), ("channels", self.request.channels)):
            for name in names:
                if name not in order:
                    raise SensitivityError(f"{key}: '{name}' is not in group_order")
        for name, losses in self.groups.items():
            for ratio in losses:
                if ratio not in self.request.ratios:
                    raise SensitivityError(f"groups.{name}: {key_of(ratio)} is not in ratios")
        tables = {"ap": self.ap} if self.ap else {}
        if self.bands:
            tables.update({"bootstrap.low": self.bands.low, "bootstrap.high": self.bands.high})
        for key, table in tables.items():
            for name in dict.fromkeys([*self.groups, *table]):
                odd = sorted(set(self.groups.get(name, ())) ^ set(table.get(name, ())))
                if odd:
                    raise SensitivityError(
                        f"{key}.{name}: ratio {key_of(odd[0])} is only in one of {key} and groups"
                    )
        object.__setattr__(self, "groups", _in_order(self.groups, order))
        object.__setattr__(self, "ap", _in_order(self.ap, order))

    @property
    def metric(self) -> str:
        """Name of the metric."""
        return self.conditions.metric

    @property
    def baseline(self) -> float | None:
        """The metric of the unpruned model, 0 to 1; None for imported files."""
        return self.conditions.baseline

    @property
    def criterion(self) -> str:
        """Which channels were cut."""
        return self.conditions.criterion

    @property
    def missing(self) -> list[tuple[str, float]]:
        """Group and ratio of every requested point that is missing."""
        return [
            (name, ratio)
            for name in self.request.group_order
            for ratio in self.request.ratios
            if ratio not in self.groups.get(name, {})
        ]

    @property
    def complete(self) -> bool:
        """Whether every group has every ratio of the grid."""
        return not self.missing

    def as_dict(self) -> dict[str, Any]:
        """The result with its JSON keys."""
        request, bands = self.request, self.bands
        bootstrap = bands and {
            "samples": bands.samples,
            "seed": bands.seed,
            "low": _with_keys(_in_order(bands.low, request.group_order)),
            "high": _with_keys(_in_order(bands.high, request.group_order)),
        }
        size = self.conditions.image_size_hw
        return {
            "schema": SCHEMA,
            "slim_det": __version__,
            **asdict(self.conditions),
            "image_size_hw": size and list(size),
            **asdict(self.sources),
            "seconds": self.seconds,
            "shard": request.shard,
            "ratios": list(request.ratios),
            "group_order": list(request.group_order),
            "channels": request.channels,
            "groups": _with_keys(self.groups),
            "ap": _with_keys(self.ap),
            "bootstrap": bootstrap,
        }

    def __str__(self) -> str:
        """One line for the terminal."""
        requested = len(self.request.group_order) * len(self.request.ratios)
        points = f"all {requested} points"
        if self.missing:
            points = f"incomplete, {requested - len(self.missing)} of {requested} points"
        baseline = "unknown" if self.baseline is None else f"{self.baseline:.4f}"
        images = self.conditions.num_images or "an unknown number of"
        shard = f", shard {self.request.shard}" if self.request.shard else ""
        return (
            f"{self.metric}, baseline {baseline} on {images} images: {points} of "
            f"{len(self.request.group_order)} groups by {self.criterion}{shard}; "
            f"{self.seconds:.0f} s"
        )


def write_result(path: str | Path, result: SensitivityResult) -> None:
    """Write a result atomically.

    Raises:
        SensitivityError: `read_result` would refuse the file; nothing is written.
        ConfigError: The folder cannot be written to.
    """
    write_json(path, _from_dict(result.as_dict()).as_dict())


def read_result(path: str | Path) -> SensitivityResult:
    """Read the file of a sensitivity analysis.

    ``schema``, ``metric``, ``criterion`` and ``groups`` are required. Whatever else is missing is
    unknown; the request is then what the file holds.

    Raises:
        SensitivityError: The file is missing, damaged, or of another schema.
    """
    data = read_json(path, "sensitivity file", SCHEMA, SensitivityError, _without_repeats)
    try:
        return _from_dict(data)
    except SlimDetError as error:
        raise SensitivityError(f"sensitivity file '{path}' is damaged: {error}") from None


def loss_table(result: SensitivityResult) -> Table:
    """The losses in percent of the baseline, one row per group and one column per ratio.

    The worst loss of each column is marked with a star; a missing point is a dash.
    """
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None)
    table.add_column("loss in %, cut by", no_wrap=True)
    rows = {name: [escape(name)] for name in result.request.group_order}
    for ratio in result.request.ratios:
        table.add_column(key_of(ratio), justify="right", no_wrap=True)
        losses = {n: row[ratio] for n, row in result.groups.items() if ratio in row}
        worst = max(losses.values(), default=0.0)
        for name, cells in rows.items():
            loss = losses.get(name)
            marked = loss == worst and worst > 0
            text = "-" if loss is None else f"{100 * loss:.1f}"
            cells.append(f"[bold red]{text}*[/]" if marked else f"{text} ")
    for cells in rows.values():
        table.add_row(*cells)
    return table


_OptionalBands = Annotated[
    Optional[Bands],
    Field(description="samples of 1 or more, seed of 0 or more, low and high as in 'groups'"),
]


@dataclass(frozen=True)
class _Measured:
    """The entries of a file that `SensitivityResult` holds itself."""

    groups: Losses
    ap: Aps = field(default_factory=dict)
    seconds: Seconds = 0.0
    bootstrap: _OptionalBands = None


def _from_dict(data: dict[str, Any]) -> SensitivityResult:
    """The result of a file; every error names the key."""
    known = {key: value for key, value in data.items() if value is not None}
    known = {"baseline": None, "num_images": None, **known}

    def read(kind: type[T]) -> T:
        return validated(kind, known, "", SensitivityError)

    measured = read(_Measured)
    known.setdefault("group_order", tuple(measured.groups))
    known.setdefault("ratios", {ratio for row in measured.groups.values() for ratio in row})
    return SensitivityResult(
        conditions=read(Conditions),
        sources=read(Sources),
        request=read(Request),
        groups=measured.groups,
        ap=measured.ap,
        seconds=measured.seconds,
        bands=measured.bootstrap,
    )


def _in_order(points: Points, order: tuple[str, ...]) -> Points:
    """Points with groups in order and ratios ascending; empty groups are left out."""
    return {name: dict(sorted(points[name].items())) for name in order if points.get(name)}


def _with_keys(points: Points) -> dict[str, dict[str, float]]:
    return {name: {key_of(r): value for r, value in row.items()} for name, row in points.items()}


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; without this, the last of several equal keys would win."""
    table = dict(pairs)
    if len(table) != len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in table if keys.count(key) > 1)
        raise ValueError(f"key '{repeated}' comes twice")
    return table
