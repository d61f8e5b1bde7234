"""What a deployment reads is what the model was evaluated on, or nothing is exported."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from slim_det.core.errors import ConfigError, ExportError, SlimDetError
from slim_det.deploy.preprocessing import (
    check_preprocessing,
    check_test_reader,
    compare_images,
    deploy_settings,
    fused_normalization,
)
from slim_det.evaluate.preprocess import ArtifactReader
from slim_det.graph.normalization import Normalization
from tests.commands import Outcome, files_below

SIZE_HW = (96, 96)
NORMALIZE = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "is_scale": True}
RESIZE = {"target_size": [96, 96], "keep_ratio": False, "interp": 2}


def steps(*kinds: str, **changes: Any) -> list[dict[str, Any]]:
    settings = {"Resize": RESIZE, "NormalizeImage": NORMALIZE}
    return [{kind: {**settings.get(kind, {}), **changes.get(kind, {})}} for kind in kinds]


USUAL = ("Decode", "Resize", "NormalizeImage", "Permute")


@pytest.mark.parametrize("fused", [False, True])
def test_content_of_the_file(tiny_cfg: Any, fused: bool) -> None:
    """The size is that of the export; the configuration is left as it was."""
    tiny_cfg["TestReader"]["fuse_normalize"] = fused
    before = copy.deepcopy(dict(tiny_cfg["TestReader"]))
    found = deploy_settings(tiny_cfg, (64, 32))
    kinds = [step["type"] for step in found["Preprocess"]]
    assert kinds == ["Resize", *([] if fused else ["NormalizeImage"]), "Permute"]
    assert found["Preprocess"][0]["target_size"] == [64, 32]
    assert found["label_list"] == ["circle", "square", "triangle", "cross"]
    assert dict(tiny_cfg["TestReader"]) == before
    assert (fused_normalization(tiny_cfg) is not None) == fused


@pytest.mark.parametrize("fused", [False, True])
def test_usual_readers_agree(tiny_cfg: Any, fused: bool) -> None:
    """Also at another size than the readers', and without an evaluation."""
    tiny_cfg["TestReader"]["fuse_normalize"] = fused
    check_test_reader(tiny_cfg, SIZE_HW)
    check_test_reader(tiny_cfg, (64, 32))
    tiny_cfg["EvalReader"]["sample_transforms"] = []
    check_test_reader(tiny_cfg, SIZE_HW)


@pytest.mark.parametrize(
    ("reader", "phrase"),
    [
        ({"sample_transforms": steps("Decode", "Resize", "Permute")}, "not normalise images as Ev"),
        (
            {"sample_transforms": steps(*USUAL, NormalizeImage={"std": [0.229, 0.224, 0.2]})},
            "become [-2.118, -2.036, -2.03] and",
        ),
        ({"sample_transforms": steps(*USUAL, NormalizeImage={"is_scale": False})}, "not normalise"),
        (
            {
                "sample_transforms": steps("Decode", "Resize"),
                "batch_transforms": steps("NormalizeImage", "Permute"),
            },
            "does not prepare images as TestReader does",
        ),
        (
            {
                "sample_transforms": steps("Decode", "NormalizeImage", "Resize", "Permute"),
                "fuse_normalize": True,
            },
            "and the program do not prepare images as TestReader does (values differ by up to",
        ),
        ({"sample_transforms": steps("Decode", "Permute"), "fuse_normalize": True}, "not normali"),
        (
            {"sample_transforms": steps("Decode", "NormalizeImage", "Permute")},
            "has no Resize or",
        ),
        ({"fuse_normalize": "on request"}, "TestReader.fuse_normalize: 'on request'; expected tr"),
    ],
)
def test_readers_that_disagree(tiny_cfg: Any, reader: dict[str, Any], phrase: str) -> None:
    tiny_cfg["TestReader"].update(reader)
    with pytest.raises(SlimDetError) as caught:
        check_test_reader(tiny_cfg, SIZE_HW)
    assert phrase in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [{}, {"interp": 1}, {"keep_ratio": True}])
def test_sizes_that_are_made_in_other_ways(
    tiny_cfg: Any, change: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """A line says so; nothing is wrong with the file."""
    tiny_cfg["TestReader"]["sample_transforms"] = steps(*USUAL, Resize=change)
    with caplog.at_level("WARNING", "slim_det"):
        check_test_reader(tiny_cfg, SIZE_HW)
    said = [f"TestReader resizes with {key}: {value}, EvalReader" for key, value in change.items()]
    assert len(caplog.records) == len(said) and all(line in caplog.text for line in said)


@pytest.mark.parametrize("fuse", [False, True])
def test_zeros_around_the_normalised_image(tiny_cfg: Any, fuse: bool) -> None:
    """They are zeros in a deployment too, so the program does not normalise."""
    padding = {"batch_transforms": [{"PadBatch": {"pad_to_stride": 128}}], "fuse_normalize": fuse}
    tiny_cfg["TestReader"].update(padding)
    check_test_reader(tiny_cfg, SIZE_HW)
    kinds = [step["type"] for step in deploy_settings(tiny_cfg, SIZE_HW)["Preprocess"]]
    assert kinds == ["Resize", "NormalizeImage", "Permute", "PadStride"]
    assert fused_normalization(tiny_cfg) is None


def test_zeros_that_are_normalised(tiny_cfg: Any) -> None:
    """Padding first is no obstacle."""
    padded = steps("Decode", "Resize", "Pad", "NormalizeImage", "Permute", Pad={"size": [128, 128]})
    tiny_cfg["TestReader"].update({"sample_transforms": padded, "fuse_normalize": True})
    check_test_reader(tiny_cfg, SIZE_HW)
    assert fused_normalization(tiny_cfg) is not None


@pytest.mark.parametrize("size_wh", [(100, 50), (50, 100), (64, 64), (30, 60)])
def test_images_that_keep_their_ratio(
    tiny_cfg: Any, tmp_path: Path, size_wh: tuple[int, int]
) -> None:
    """The shorter side becomes 48 pixels, or the longer one 80, whichever is reached first."""
    transforms = steps(*USUAL, Resize={"keep_ratio": True, "target_size": [48, 80]})
    padding = [{"PadBatch": {"pad_to_stride": 32}}]
    tiny_cfg["TestReader"].update({"sample_transforms": transforms, "batch_transforms": padding})
    check_test_reader(tiny_cfg, (48, 80))
    settings = deploy_settings(tiny_cfg, (48, 80))
    assert settings["use_dynamic_shape"] is True
    assert settings["Preprocess"][0]["target_size"] == [48, 80]
    path = str(tmp_path / "image.png")
    cv2.imwrite(path, np.full((*size_wh[::-1], 3), 255, np.uint8))
    found = ArtifactReader(settings)(path)
    scale = min(48 / min(size_wh), 80 / max(size_wh))
    height, width = (round(side * scale) for side in size_wh[::-1])
    np.testing.assert_allclose(found["im_shape"], [[height, width]])
    np.testing.assert_allclose(found["scale_factor"], [[scale, scale]], rtol=1e-6)
    image = found["image"]
    assert image.shape == (1, 3, -(-height // 32) * 32, -(-width // 32) * 32)
    assert (image[..., :height, :width] > 1).all()
    assert not image[..., height:, :].any() and not image[..., width:].any()


@pytest.mark.parametrize("keep", [False, True])
def test_images_that_are_warped(tiny_cfg: Any, tmp_path: Path, keep: bool) -> None:
    """CenterNet pads images at their own size, on all sides; or it warps them to one size."""
    warp = {"keep_res": keep, "input_h": 96, "input_w": 96}
    transforms = steps("Decode", "WarpAffine", "NormalizeImage", "Permute", WarpAffine=warp)
    tiny_cfg["TestReader"]["sample_transforms"] = transforms
    check_test_reader(tiny_cfg, (64, 128))
    settings = deploy_settings(tiny_cfg, (64, 128))
    assert settings["use_dynamic_shape"] is keep
    path = str(tmp_path / "image.png")
    cv2.imwrite(path, np.full((50, 100, 3), 255, np.uint8))
    found = ArtifactReader(settings)(path)
    assert found["image"].shape[2:] == (64, 128)
    np.testing.assert_array_equal(found["im_shape"], [[50, 100]])
    if keep:  # 14 rows and 28 columns are divided between both sides
        image = found["image"][0, 0]
        inside = image[7:57, 14:114]
        assert (inside > 1).all() and np.isclose(inside, image.max()).all()
        assert (image[:6] < -1).all() and (image[:, :13] < -1).all() and (image[58:] < -1).all()


def test_nothing_to_fuse(tiny_cfg: Any) -> None:
    """ppdet would take the values of ImageNet."""
    for reader in ("EvalReader", "TestReader"):
        tiny_cfg[reader]["sample_transforms"] = steps("Decode", "Resize", "Permute")
    check_test_reader(tiny_cfg, SIZE_HW)
    tiny_cfg["TestReader"]["fuse_normalize"] = True
    with pytest.raises(ConfigError, match="have no NormalizeImage"):
        check_test_reader(tiny_cfg, SIZE_HW)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("outside", [False, True])
def test_file_and_program_of_different_exports(tiny_cfg: Any, inside: bool, outside: bool) -> None:
    """Normalised exactly once."""
    tiny_cfg["TestReader"]["fuse_normalize"] = not outside
    settings = deploy_settings(tiny_cfg, SIZE_HW)
    known = Normalization.of_steps([{"NormalizeImage": NORMALIZE}]) if inside else None
    if inside != outside:
        check_preprocessing(tiny_cfg, settings, known, SIZE_HW)
        return
    with pytest.raises(ExportError, match="not prepare images as TestReader does"):
        check_preprocessing(tiny_cfg, settings, known, SIZE_HW)


def test_large_values_may_have_large_rounding_errors(tmp_path: Path) -> None:
    """As they are a share of the value."""
    path = str(tmp_path / "white.png")
    cv2.imwrite(path, np.full((4, 4, 3), 255, np.uint8))
    found = ArtifactReader({"Preprocess": [{"type": "Permute"}]})(path)
    expected = {**found, "image": found["image"] * 1000}
    thousand = Normalization(np.full(3, 1000.01), np.zeros(3))
    assert compare_images(expected, found, thousand).fault == ""
    thousand = Normalization(np.full(3, 1000.1), np.zeros(3))
    assert "differ by up to 26" in compare_images(expected, found, thousand).fault


@pytest.mark.parametrize("command", ["export", "quantize"])
def test_command_that_is_refused(
    cli: Callable[..., Outcome], tiny: Path, unpruned: Path, tmp_path: Path, command: str
) -> None:
    """Nothing is written."""
    folders = ("--output_dir", tmp_path / "out")
    folders += ("--save_dir", tmp_path / "saved") if command == "quantize" else ()
    changed = "TestReader.sample_transforms=" + str(steps("Decode", "Resize", "Permute"))
    run = cli(command, "-c", tiny, *folders, "-o", f"weights={unpruned}", changed)
    assert run.code == 2 and len(run.err.splitlines()) == 1, run.err
    assert "TestReader does not normalise images as EvalReader does" in run.err
    assert files_below(tmp_path) == {}
