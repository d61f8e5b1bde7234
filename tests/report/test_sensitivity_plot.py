"""The picture: what is drawn, that lines can be told apart, and that the file is complete."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from slim_det.core.errors import ConfigError, SensitivityError
from slim_det.detectors.yolov3_head import YOLO_HEAD_LAYERS
from slim_det.planning.sensitivity.result import Conditions, Request
from slim_det.report.sensitivity_plot import _draw, block_of, plot_losses, styles
from tests.planning.sensitivity.results import small_bands, small_result


def test_nothing_to_plot(tmp_path: Path) -> None:
    with pytest.raises(SensitivityError, match="nothing to plot"):
        plot_losses(small_result(groups={}, ap={}), tmp_path / "p.png")
    assert list(tmp_path.iterdir()) == []


def test_the_file_is_a_picture(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "losses.png"
    plot_losses(small_result(bands=small_bands()), path)
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG" and min(image.size) > 500
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot write"):
        plot_losses(small_result(), tmp_path / "file" / "p.png")


def test_what_is_drawn() -> None:
    figure = _draw(small_result())
    (axes,) = figure.axes
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert list(lines["tip"].get_xdata()) == [0.1, 0.5]
    assert list(lines["tip"].get_ydata()) == [-0.2, 0.9]
    assert list(lines["route"].get_ydata()) == [0.0, 0.5]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["route", "tip"]
    assert axes.get_xlabel() == "share of channels removed"
    assert axes.get_ylabel() == "loss of voc_map_11point, relative to the baseline"
    assert axes.get_title() == "Sensitivity by l1_norm: baseline 0.5000 on 364 images"
    assert not axes.collections


def test_bands_are_drawn_and_explained() -> None:
    (axes,) = _draw(small_result(bands=small_bands())).axes
    assert len(axes.collections) == 2
    heights = {y for y in axes.collections[1].get_paths()[0].vertices[:, 1].tolist()}
    assert heights == {-0.3, 0.8, -0.1, 0.95}
    assert "5th to 95th percentile of 200 draws" in axes.get_title()


def test_an_imported_result() -> None:
    unknown = Conditions("unknown", None, None, "l1_norm")
    (axes,) = _draw(small_result(conditions=unknown, ap={})).axes
    assert "baseline unknown on an unknown number of images" in axes.get_title()


def test_a_group_keeps_its_look_in_a_shard() -> None:
    part = small_result(groups={"tip": {0.1: 0.3}}, ap={})
    colours = [
        next(line.get_color() for line in _draw(r).axes[0].get_lines() if line.get_label() == "tip")
        for r in (part, small_result())
    ]
    assert colours[0] == colours[1]


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("neck.yolo_block.0.conv_module.conv0", "neck.yolo_block.0"),
        ("neck.yolo_block.2.tip", "neck.yolo_block.2"),
        ("backbone.stage.3.blocks.1.conv", "backbone.stage.3"),
        ("backbone.conv1", "backbone"),
        ("stem", ""),
    ],
)
def test_block(name: str, block: str) -> None:
    assert block_of(name) == block


def looks_of(names: Sequence[str]) -> dict[str, tuple[str, str, str]]:
    """Colour, line style and marker."""
    return {n: (s["color"], s["linestyle"], s["marker"]) for n, s in styles(names).items()}


def test_the_head_of_a_yolov3_is_told_apart_by_block() -> None:
    looks = looks_of(YOLO_HEAD_LAYERS)
    assert len(set(looks.values())) == 18
    for first in range(0, 18, 6):
        block = [looks[name] for name in YOLO_HEAD_LAYERS[first : first + 6]]
        assert len({colour for colour, _, _ in block}) == 6
        assert len({look[1:] for look in block}) == 1
    assert len({look[1:] for look in looks.values()}) == 3


@pytest.mark.parametrize("form", ["backbone.conv{}", "backbone.{}.conv", "conv{}.pointwise"])
@pytest.mark.parametrize("count", [0, 1, 9, 64])
def test_no_two_of_64_look_alike(form: str, count: int) -> None:
    names = [form.format(i) for i in range(count)]
    looks = looks_of(names)
    assert list(looks) == names and len(set(looks.values())) == count


def test_more_than_64_are_drawn_all_the_same() -> None:
    names = tuple(f"g{i}" for i in range(100))
    figure = _draw(
        small_result(request=Request(names, (0.1,)), groups={n: {0.1: 0.5} for n in names}, ap={})
    )
    assert len(figure.legends[0].get_texts()) == 100
