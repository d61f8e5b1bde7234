"""PaddleDetection's historical keys as settings of `Distill`."""

from __future__ import annotations

from typing import Any

import pytest

from slim_det.compress.distill.settings import read_terms
from slim_det.compress.distill.slim_file import read_distill
from slim_det.core.errors import ConfigError

TEACHER = {"architecture": "RetinaNet", "pretrain_weights": "t.pdparams", "TrainReader": {"a": 1}}


def read(**tree: Any) -> dict[str, Any]:
    return read_distill({**TEACHER, **tree}, "slim.yml", ["Pruner"])


def terms(settings: dict[str, Any]) -> list[tuple[str, str | None, float, float]]:
    given = {k: v for k, v in settings["Distill"].items() if k not in ("teacher", "total_factor")}
    return [
        (term.loss, term.student, term.weight, term.temperature) for term in read_terms(**given)
    ]


def test_the_rest_of_the_file_is_the_teacher() -> None:
    settings = read(Pruner={"x": 1})
    assert settings == {
        "Pruner": {"x": 1},
        "Distill": {
            "teacher": {
                "tree": {"architecture": "RetinaNet", "TrainReader": {"a": 1}},
                "weights": "t.pdparams",
            }
        },
    }


@pytest.mark.parametrize(("weight", "expected"), [({}, 1000.0), ({"weight": 7}, 7.0)])
def test_yolov3(weight: dict[str, int], expected: float) -> None:
    settings = read(distill_loss="DistillYOLOv3Loss", DistillYOLOv3Loss=weight)
    assert terms(settings) == [("split", None, expected, 1.0)]


def test_cwd_compares_the_levels_of_the_neck() -> None:
    loss = {"tau": 2.0, "weight": 5.0, "student_channels": 80, "teacher_channels": 80}
    common: dict[str, Any] = {"slim_method": "CWD", "distill_loss": "CWDFeatureLoss"}
    names = {"distill_loss_name": ["a", "b"]}
    settings = read(**common, **names, CWDFeatureLoss=loss)
    levels = [("cwd", f"neck[{level}]", 5.0, 2.0) for level in (0, 1)]
    assert terms(settings) == levels
    of_gfl = read(**common, **names, CWDFeatureLoss=loss, architecture="GFL")
    heads = [("cwd", f"head.gfl_head_cls[{level}]", 5.0, 2.0) for level in (0, 1)]
    assert terms(of_gfl) == levels + heads
    assert terms(read(**common)) == [("cwd", "neck", 1.0, 1.0)]


def test_fgd_has_its_factors() -> None:
    settings = read(
        slim_method="FGD", distill_loss="FGDFeatureLoss", FGDFeatureLoss={"gamma_fgd": 0.0005}
    )
    assert terms(settings) == [("fgd", "neck", 1.0, 0.5)]
    assert settings["Distill"]["pairs"][0]["factors"] == {
        "alpha": 0.001,
        "beta": 0.0005,
        "gamma": 0.0005,
        "lambda": 0.000005,
    }


def test_ld_takes_the_targets_of_the_teachers_reader() -> None:
    reader = {"batch_transforms": [{"Gt2GFLTarget": {}}], "batch_size": 3}
    settings = read(slim_method="LD", TrainReader=reader)
    assert terms(settings) == [("ld", None, 1.0, 1.0)]
    assert settings["TrainReader"] == {"batch_transforms": [{"Gt2GFLTarget": {}}]}


def test_ppyoloe_has_outputs_and_features_and_an_eighth_of_the_total() -> None:
    common: dict[str, Any] = {"slim_method": "PPYOLOEDistill", "distill_loss": "DistillPPYOLOELoss"}
    settings = read(**common, DistillPPYOLOELoss={"logits_ld_distill": True})
    assert settings["Distill"]["total_factor"] == 0.125
    assert terms(settings) == [("ppyoloe", None, 4.0, 10.0), ("fgd", "neck", 1.0, 0.5)]
    assert settings["Distill"]["factors"] == {"class": 1.0, "iou": 2.5, "dfl": 0.5, "ld": 20000}
    mimic = {"feat_distiller": "mimic", "feat_distill_place": "backbone_feats"}
    features = read(**common, DistillPPYOLOELoss={"logits_distill": False, **mimic})
    assert terms(features) == [("feature_l2", "backbone", 1.0, 1.0)]
    assert features["Distill"]["pairs"][0]["normalize"]


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"slim_method": "CDW"}, "slim_method: unknown method 'CDW'; did you mean 'CWD'?"),
        ({"distill_loss": "MGD"}, "distill_loss: unknown loss 'MGD'"),
        (
            {"slim_method": "CWD"},
            "distill_loss: slim_method 'CWD' needs CWDFeatureLoss, found None",
        ),
        ({"distill_loss": "CWDFeatureLoss"}, "distill_loss: 'CWDFeatureLoss' needs a slim_method"),
        (
            {"slim_method": "LD", "Distill": {"loss": "l2"}},
            "Distill.loss and LD are both given; leave one out",
        ),
        (
            {
                "slim_method": "FGD",
                "distill_loss": "FGDFeatureLoss",
                "FGDFeatureLoss": {"alpha": 1},
            },
            "FGDFeatureLoss: unknown key 'alpha'; did you mean 'alpha_fgd'?",
        ),
        (
            {
                "slim_method": "PPYOLOEDistill",
                "distill_loss": "DistillPPYOLOELoss",
                "DistillPPYOLOELoss": {"feat_distiller": "mgd"},
            },
            "DistillPPYOLOELoss: feat_distiller 'mgd' of 'neck_feats' is not supported; expected",
        ),
    ],
)
def test_mistakes_are_one_line(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(**tree)
    assert str(caught.value).startswith(f"slim.yml: {message}")
    assert "\n" not in str(caught.value)


def test_a_teacher_is_needed() -> None:
    with pytest.raises(ConfigError, match=r"slim.yml: Distill.teacher is missing"):
        read_distill({"Distill": {"loss": "l2"}}, "slim.yml", [])
