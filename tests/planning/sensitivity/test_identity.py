"""What a measurement depends on is in its identity, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import paddle
import pytest

from slim_det.compress.prune.pruner import Pruner
from slim_det.planning.sensitivity.identity import identify
from slim_det.planning.sensitivity.measure import Images
from slim_det.training import session
from slim_det.training.config import load_config
from tests.blazeface import lively_blazeface
from tests.support import restored_config
from tests.trained import Detector, copy_detector

HASHES = ("fingerprint", "weights_sha256", "data_sha256", "config_sha256")


@pytest.fixture
def copy(detector: Detector, tmp_path: Path) -> Detector:
    return copy_detector(detector, tmp_path / "detector")


def identity(
    config: Path,
    overrides: tuple[str, ...] = (),
    num_images: int | None = None,
    **pruner: Any,
) -> dict[str, Any]:
    with restored_config():
        cfg = load_config(config, list(overrides))
        model = session.model_with_weights(cfg, cfg.weights)
        images = Images(cfg, num_images)
        return identify(cfg, model, images, Pruner(pruned_ratios=0.5, **pruner))


def changed(left: dict[str, Any], right: dict[str, Any]) -> set[str]:
    assert left.keys() == right.keys()
    return {key for key in left if left[key] != right[key]}


def test_identity_is_json_and_the_same_twice(copy: Detector) -> None:
    first = identity(copy.config)
    assert json.loads(json.dumps(first)) == first == identity(copy.config)
    assert all(len(first[key]) == 64 for key in HASHES)
    assert (first["metric"], first["num_images"]) == ("coco_ap", 6)
    assert (first["criterion"], first["align"], first["seed"]) == ("l1_norm", 1, 0)


def test_place_does_not_count(detector: Detector, copy: Detector) -> None:
    """The same files in another folder, under another name."""
    moved = copy.config.rename(copy.config.with_name("other.yml"))
    assert identity(detector.config) == identity(moved)


@pytest.mark.parametrize(
    "override",
    ["worker_num=1", "save_dir=elsewhere", "epoch=7", "log_iter=3", "TrainReader.batch_size=2",
     "LearningRate.base_lr=0.5"],
)  # fmt: skip
def test_settings_without_effect_do_not_count(detector: Detector, override: str) -> None:
    assert identity(detector.config, (override,)) == identity(detector.config)


TRANSFORMS = (
    "EvalReader.sample_transforms=[{Decode: {}}, "
    "{Resize: {target_size: [96, 96], keep_ratio: false, interp: 2}}, "
    "{NormalizeImage: {mean: [%s, 0.456, 0.406], std: [0.229, 0.224, 0.225], is_scale: true}}, "
    "{Permute: {}}]"
)


@pytest.mark.parametrize(
    "override",
    ["BBoxPostProcess.nms.nms_threshold=0.5", "BBoxPostProcess.decode.conf_thresh=0.1",
     TRANSFORMS % 0.5, "EvalReader.batch_size=2"],
)  # fmt: skip
def test_settings_with_effect_count(detector: Detector, override: str) -> None:
    found = changed(identity(detector.config), identity(detector.config, (override,)))
    assert found == {"config_sha256"}


def test_same_transforms_as_an_override_do_not_count(detector: Detector) -> None:
    """The line above changes one number, and that is what is seen."""
    assert identity(detector.config, (TRANSFORMS % 0.485,)) == identity(detector.config)


def test_options_of_the_run_count(detector: Detector) -> None:
    base = identity(detector.config)
    assert changed(base, identity(detector.config, criterion="fpgm")) == {"criterion"}
    assert changed(base, identity(detector.config, align=8)) == {"align"}
    assert changed(base, identity(detector.config, seed=1)) == {"seed"}
    fewer = changed(base, identity(detector.config, num_images=3))
    assert {"num_images"} <= fewer <= {"num_images", "data_sha256"}
    voc = changed(base, identity(detector.voc))
    assert {"metric", "config_sha256"} <= voc and "weights_sha256" not in voc
    integral = identity(detector.voc, ("map_type=integral",))
    assert changed(identity(detector.voc), integral) == {"metric", "config_sha256"}


def scale_a_weight(detector: Detector) -> None:
    state = paddle.load(str(detector.weights))
    name = "neck.yolo_block.0.tip.conv.weight"
    state[name] = state[name] * 1.001
    paddle.save(state, str(detector.weights))


def touch_an_image(detector: Detector) -> None:
    record = json.loads(detector.annotations.read_text())["images"][-1]
    path = detector.images / record["file_name"]
    path.write_bytes(path.read_bytes() + b"\0")


def move_an_object(detector: Detector) -> None:
    content = json.loads(detector.annotations.read_text())
    content["annotations"][-1]["bbox"][0] += 0.5
    detector.annotations.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "key"),
    [(scale_a_weight, "weights_sha256"), (touch_an_image, "data_sha256"),
     (move_an_object, "data_sha256")],
)  # fmt: skip
def test_changed_files_count(copy: Detector, change: Callable[[Detector], None], key: str) -> None:
    before = identity(copy.config)
    change(copy)
    assert changed(before, identity(copy.config)) == {key}


def test_difficult_objects_of_voc_count(copy: Detector) -> None:
    before = identity(copy.voc)
    path = next(iter(sorted((copy.folder / "set" / "objects").iterdir())))
    text = path.read_text()
    assert "<difficult>0" in text
    path.write_text(text.replace("<difficult>0", "<difficult>1", 1))
    assert changed(before, identity(copy.voc)) == {"data_sha256"}


def test_a_ground_truth_of_its_own_counts_by_content(tmp_path: Path) -> None:
    config = lively_blazeface(tmp_path / "faces")
    text = (tmp_path / "faces" / "set" / "val.txt").read_text()
    copies = [tmp_path / name for name in ("truth.txt", "again.txt")]
    for path in copies:
        path.write_text(text)
    first, second = (identity(config, (f"widerface_ground_truth={path}",)) for path in copies)
    assert first == second
    assert changed(first, identity(config)) == {"data_sha256"}
    copies[0].write_text(text + "\n")
    third = identity(config, (f"widerface_ground_truth={copies[0]}",))
    assert changed(second, third) == {"data_sha256"}
