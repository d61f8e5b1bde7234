"""A teacher fits a student, or everything that does not is named in one line."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import paddle
import pytest

from slim_det.compress.distill.fit import check_fit
from slim_det.compress.distill.teacher import Teacher
from slim_det.core.errors import ConfigError

SCALES = [[[7, 7], [8, 8]], [[1, 1], [2, 2]]]
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


class Head(paddle.nn.Layer):
    """What a YOLO head says of itself."""

    def __init__(self, num_classes: int, scales: Any, strides: Any, iou_aware: bool) -> None:
        super().__init__()
        self.num_classes, self.anchors, self.iou_aware = num_classes, scales, iou_aware
        self.loss = SimpleNamespace(downsample=strides)


def detector(
    num_classes: int = 4, scales: Any = SCALES, strides: Any = (32, 16), iou_aware: bool = False
) -> paddle.nn.Layer:
    model = paddle.nn.Layer()
    model.yolo_head = Head(num_classes, scales, strides, iou_aware)
    return model


def reader(*steps: dict[str, Any], batch: bool = False) -> dict[str, Any]:
    key = "batch_transforms" if batch else "sample_transforms"
    return {"TrainReader": {"sample_transforms": [{"Decode": {}}], **{key: list(steps)}}}


def normalized(**settings: Any) -> dict[str, Any]:
    return reader({"Decode": {}}, {"NormalizeImage": settings})


def refused(ours: tuple[Any, Any], theirs: tuple[Any, Any], **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        check_fit(*ours, Teacher(*theirs), **options)
    line = str(caught.value)
    assert "\n" not in line
    return line.replace("the teacher does not fit the student: ", "")


def test_nothing_is_said_of_either() -> None:
    """Layers without a head, readers without transforms."""
    check_fit(paddle.nn.Layer(), {}, Teacher(paddle.nn.Layer(), {}))


def test_the_same_detector_fits() -> None:
    cfg = normalized(mean=MEAN, std=STD, is_scale=True)
    check_fit(detector(), cfg, Teacher(detector(), cfg))


def test_shipped_configuration_fits_itself(fresh_config: Any, tiny: Any, unpruned: Any) -> None:
    """Of ppdet's own head, loss and readers; and other classes or anchors are found."""
    from slim_det.compress.distill.teacher import build_teacher
    from slim_det.training import session
    from slim_det.training.config import load_config

    teacher = build_teacher({"config": str(tiny), "weights": str(unpruned)}, session.load_detector)
    cfg = load_config(tiny)
    check_fit(session.build_model(cfg), cfg, teacher)
    cfg = load_config(
        tiny,
        [
            "num_classes=5",
            "YOLOv3Head.anchor_masks=[[0, 1, 2], [3, 4, 5], [6, 7, 8]]",
            "YOLOv3Loss.downsample=[8, 16, 32]",
        ],
    )
    line = refused((session.build_model(cfg), cfg), (teacher.model, teacher.cfg))
    assert line.startswith("num_classes: 5 in the student, 4 in the teacher; anchor_masks, which ")
    assert line.endswith("; strides: [8, 16, 32] in the student, [32, 16, 8] in the teacher")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_classes": 20}, "num_classes: 4 in the student, 20 in the teacher"),
        ({"strides": [16, 8]}, "strides: [32, 16] in the student, [16, 8] in the teacher"),
        ({"iou_aware": True}, "iou_aware: False in the student, True in the teacher"),
        (
            {"scales": [[[7, 7]], [[1, 1]]]},
            f"anchors: {SCALES} in the student, [[[7, 7]], [[1, 1]]] in the teacher",
        ),
        (
            {"scales": SCALES[::-1]},
            f"anchor_masks, which choose: {SCALES} in the student, {SCALES[::-1]} in the teacher",
        ),
        (
            {"scales": SCALES[:1], "strides": [32]},
            f"number of scales: 2 in the student, 1 in the teacher; anchors: {SCALES} in the "
            f"student, {SCALES[:1]} in the teacher; strides: [32, 16] in the student, [32] in the "
            "teacher",
        ),
    ],
)
def test_heads(changes: dict[str, Any], said: str) -> None:
    assert refused((detector(), {}), (detector(**changes), {})) == said


def test_strides_that_one_side_does_not_say() -> None:
    check_fit(detector(), {}, Teacher(detector(strides=None), {}))


def test_head_on_one_side_only() -> None:
    none = paddle.nn.Layer()
    line = refused((detector(), {"num_classes": 4}), (none, {"num_classes": 4}))
    assert line == "architecture: a YOLO head in the student, no YOLO head in the teacher"


def test_classes_without_heads_are_those_of_the_configuration() -> None:
    line = refused((paddle.nn.Layer(), {"num_classes": 3}), (paddle.nn.Layer(), {}))
    assert line == "num_classes: 3 in the student, 80 in the teacher"


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (normalized(), normalized(mean=MEAN, std=STD, is_scale=True, norm_type="mean_std")),
        (normalized(), reader({"NormalizeImage": {}}, batch=True)),
        (normalized(), {"EvalReader": normalized()["TrainReader"]}),
        (
            normalized(),
            normalized(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], is_scale=False),
        ),
        (normalized(norm_type="none"), normalized(norm_type="none", mean=[9.0], std=[9.0])),
        (reader({"Decode": {}}), normalized(norm_type="none", is_scale=False)),
        (normalized(mean=[0, 0, 0], std=[1, 1, 1]), normalized(norm_type="none")),
    ],
)
def test_images_that_look_the_same(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """However the settings are written, and wherever they stand."""
    check_fit(detector(), ours, Teacher(detector(), theirs))
    check_fit(detector(), theirs, Teacher(detector(), ours))


@pytest.mark.parametrize(
    "other",
    [
        {"mean": [0.5, 0.456, 0.406]},
        {"std": [0.229, 0.224, 0.5]},
        {"is_scale": False},
        {"norm_type": "none"},
        {"mean": [127.5, 127.5, 127.5], "std": [128.0, 128.0, 128.0], "is_scale": False},
        {"mean": [0.5], "std": [0.5]},
    ],
)
def test_images_that_look_different(other: dict[str, Any]) -> None:
    defaults = {"mean": MEAN, "std": STD, "is_scale": True, "norm_type": "mean_std"}
    line = refused((detector(), normalized()), (detector(), normalized(**other)))
    assert line == (
        f"NormalizeImage: {defaults} in the student, { ({**defaults, **other}) } in the teacher"
    )


def test_images_that_one_side_does_not_normalise() -> None:
    line = refused((detector(), normalized()), (detector(), reader({"Decode": {}})))
    assert line.startswith("NormalizeImage: {") and line.endswith("student, none in the teacher")


def test_the_training_reader_counts_first() -> None:
    """It is the one whose batches the teacher sees."""
    both = {**normalized(is_scale=False), "EvalReader": normalized()["TrainReader"]}
    assert "NormalizeImage" in refused((detector(), both), (detector(), normalized()))


def test_everything_in_one_line() -> None:
    ours = (detector(), normalized())
    theirs = (detector(5, SCALES[::-1], [16, 32], True), reader({"Decode": {}}))
    parts = [part.split(":")[0] for part in refused(ours, theirs).split("; ")]
    assert parts == [
        "num_classes",
        "anchor_masks, which choose",
        "strides",
        "iou_aware",
        "NormalizeImage",
    ]


def test_features_only_need_the_same_images() -> None:
    theirs = detector(5, SCALES[:1], [32])
    check_fit(detector(), {}, Teacher(theirs, {}), compare_outputs=False)
    line = refused((detector(), normalized()), (theirs, reader({})), compare_outputs=False)
    assert line.startswith("NormalizeImage: ")
