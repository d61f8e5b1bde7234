"""The plot of a sensitivity analysis."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slim_det.core.errors import SensitivityError
from slim_det.core.files import write_atomically
from slim_det.planning.sensitivity.result import WITHOUT_EVALUATION, SensitivityResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#4d4d4d", "#8c510a")
"""Okabe and Ito 2008, "Color universal design", safe for colour-blind readers; two darker ones."""

_LINES = ("-", "--", ":", "-.")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_LEGEND_ROWS = 36


def plot_losses(result: SensitivityResult, path: str | Path) -> None:
    """Plot loss over the share of channels removed, one line per group, as a PNG file.

    Layers of one block (such as ``neck.yolo_block.0``) share line style and marker and differ in
    colour. Bands are the 5th to 95th percentile of the bootstrap.

    Raises:
        SensitivityError: The result has no point.
        ConfigError: The folder cannot be written to.
    """
    if not result.groups:
        raise SensitivityError("there is nothing to plot: no point has been measured")
    figure = _draw(result)
    write_atomically({Path(path): lambda name: figure.savefig(name, format="png")})


def block_of(name: str) -> str:
    """The block of a layer: its path up to the first number, or without its last part.

    ``neck.yolo_block.0.tip`` is in ``neck.yolo_block.0``, ``backbone.conv1`` in ``backbone``.
    """
    parts = name.split(".")
    for index, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[: index + 1])
    return ".".join(parts[:-1])


def styles(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colour, line style and marker of each group; up to 64 groups all differ.

    Colour tells the layers of a block apart; line style and marker tell blocks apart. A block of
    more than 8 layers counts as several; if that gives too many blocks, every 8 names are one.
    """
    from matplotlib.rcsetup import cycler

    colours = cycler(color=_COLOURS)
    blocks_looks = cycler(linestyle=_LINES * 2) + cycler(marker=_MARKERS)
    looks = list(blocks_looks * colours)
    place: Counter[str] = Counter()
    blocks: list[tuple[str, int]] = []
    for name in names:
        block = block_of(name)
        blocks.append((block, place[block] // len(colours)))
        place[block] += 1
    if len(set(blocks)) > len(blocks_looks):
        blocks = [("", index // len(colours)) for index in range(len(names))]
    first = {key: i * len(colours) for i, key in enumerate(dict.fromkeys(blocks))}
    seen: Counter[tuple[str, int]] = Counter()
    chosen = {}
    for name, key in zip(names, blocks):
        chosen[name] = looks[(first[key] + seen[key]) % len(looks)]
        seen[key] += 1
    return chosen


def _draw(result: SensitivityResult) -> Figure:
    from matplotlib.figure import Figure

    columns = -(-len(result.groups) // _LEGEND_ROWS)
    figure = Figure(figsize=(7.5 + 3.5 * columns, 6.5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    _draw_lines(axes, result)
    figure.legend(loc="outside right upper", ncols=columns, fontsize=8, handlelength=3.5)
    baseline = "unknown" if result.baseline is None else f"{result.baseline:.4f}"
    images = result.conditions.num_images or "an unknown number of"
    is_error = result.metric in WITHOUT_EVALUATION
    known = result.metric.replace("_", " ") if is_error else f"baseline {baseline}"
    title = f"Sensitivity by {result.criterion}: {known} on {images} images"
    if result.bands:
        title += f"\nbands: 5th to 95th percentile of {result.bands.samples} draws of the images"
    axes.set_title(title)
    axes.set_xlabel("share of channels removed")
    axes.set_ylabel(
        "1 - exp(-error)" if is_error else f"loss of {result.metric}, relative to the baseline"
    )
    return figure


def _draw_lines(axes: Axes, result: SensitivityResult) -> None:
    looks = styles(result.request.group_order)
    bands = result.bands
    for name, losses in result.groups.items():
        ratios = list(losses)
        axes.plot(ratios, list(losses.values()), ms=5, lw=1.5, label=name, **looks[name])
        if bands:
            low, high = ([table[name][r] for r in ratios] for table in (bands.low, bands.high))
            axes.fill_between(ratios, low, high, color=looks[name]["color"], alpha=0.08, lw=0)
    axes.axhline(0, color="black", lw=0.8)
    axes.grid(alpha=0.3)
