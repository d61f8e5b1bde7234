"""Heads of ppdet that share assignments or learn from a teacher's outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from paddle import nn

from slim_det.compress.distill.distiller import Distiller
from slim_det.compress.distill.heads import LDHeads, PPYOLOEHeads
from slim_det.compress.distill.settings import read_terms
from slim_det.compress.distill.taps import Place
from slim_det.core.errors import ConfigError
from slim_det.training.config import load_config
from slim_det.training.session import build_model

CONFIG = Path(__file__).parents[3] / "configs" / "ppyoloe" / "_base_" / "ppyoloe_plus_s.yml"
NAMES = ("assigned_labels", "assigned_bboxes", "assigned_scores", "mask_positive")


def detector(width: float) -> Any:
    overrides = ["architecture=PPYOLOE", "for_distill=true", "num_classes=3", f"width_mult={width}"]
    paddle.seed(int(8 * width))
    model = build_model(load_config(CONFIG, overrides))
    for conv in (*model.yolo_head.pred_cls, *model.yolo_head.pred_reg):
        conv.weight.set_value(paddle.randn(conv.weight.shape) * 0.1)  # they start at 0
    return model


def make_batch(epoch: int = 100, objects: int = 1) -> dict[str, Any]:
    image = np.random.default_rng(0).normal(size=(2, 3, 96, 96)).astype("float32")
    boxes = np.zeros((2, 1, 4), "float32")
    boxes[:, 0] = [8, 8, 40, 56] if objects else 0
    return {
        "image": paddle.to_tensor(image),
        "gt_bbox": paddle.to_tensor(boxes),
        "gt_class": paddle.ones([2, 1, 1], "int32"),
        "pad_gt_mask": paddle.full([2, 1, 1], float(objects)),
        "epoch_id": epoch,
    }


@pytest.fixture
def both(fresh_config: Any) -> Any:
    return detector(0.125), detector(0.25)


def distilled(student: Any, teacher: Any) -> Distiller:
    fgd = {"loss": "fgd", "student": "neck", "teacher": "neck", "normalize": True}
    distiller = Distiller(student, teacher, read_terms("ppyoloe", pairs=[fgd]), 3, 0.125)
    distiller.attach()
    student.train()
    return distiller


def test_both_heads_have_the_same_anchors(both: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = both
    distiller = distilled(student, teacher)
    seen = []
    take = PPYOLOEHeads.take
    monkeypatch.setattr(
        PPYOLOEHeads, "take", lambda self, out: seen.append(take(self, out)) or seen[-1]
    )
    before = {name: value.numpy().copy() for name, value in teacher.state_dict().items()}
    losses = student(make_batch())
    (place,) = (term.student[0] for term in distiller.terms if term.key == "distill_ppyoloe")
    assert place == Place("ppyoloe", "head")
    assert int(seen[0]["mask_positive_select"].sum()) == len(seen[0]["pred_bboxes_pos"]) > 0
    own = losses["loss_cls"] + 2.5 * losses["loss_iou"] + 0.5 * losses["loss_dfl"]
    total = own + losses["distill_ppyoloe"] + losses["distill_fgd"]
    assert losses["loss"].item() == pytest.approx(0.125 * total.item(), rel=1e-4)
    losses["loss"].backward()
    assert student.yolo_head.pred_reg[2].weight.grad.abs().max().item() > 0.0
    after = teacher.state_dict()
    assert all(np.array_equal(before[name], after[name].numpy()) for name in before)
    assert not any(layer.training for layer in teacher.sublayers(include_self=True))


def test_no_assignment_is_left_for_the_next_batch(both: Any) -> None:
    """A head that still has one would train on the objects of other images."""
    student, teacher = both
    distilled(student, teacher)
    student(make_batch())
    for head in (student.yolo_head, teacher.yolo_head):
        assert not any(hasattr(head, name) for name in NAMES)
        assert not head.distill_pairs
    assert np.isfinite(student(make_batch(objects=0))["loss"].item())
    assert np.isfinite(student(make_batch(epoch=0))["loss"].item())


def test_a_neck_is_adapted_level_by_level(both: Any) -> None:
    distiller = distilled(*both)
    assert distiller.auxiliary_modules is not None
    layers = distiller.auxiliary_modules.layer
    shapes = [adaptor.weight.shape for adaptor in layers.distill_fgd]
    assert shapes == [[192, 96, 1, 1], [96, 48, 1, 1], [48, 24, 1, 1]]
    assert len(layers.distill_fgd_context) == 3


class LDGFLHead(nn.Layer):
    """The interface of ppdet's head with one scale: its loss adds what it learns of soft labels."""

    def __init__(self, bins: int = 4) -> None:
        super().__init__()
        self.dgqp_module, self.fpn_stride, self.reg_max = None, [8], bins
        self.gfl_head_cls = nn.Conv2D(2, 3, 1)
        self.scales_regs = nn.LayerList([nn.Conv2D(2, 4, 1)])

    def forward(self, feature: paddle.Tensor) -> Any:
        return [self.gfl_head_cls(feature)], [self.scales_regs[0](feature)]

    def get_loss(self, outputs: Any, targets: Any, soft_labels: Any, soft_targets: Any) -> Any:
        return {
            "loss_qfl": outputs[0][0].square().mean(),
            "loss_ld": (outputs[1][0] - soft_targets[0]).square().mean(),
            "loss_ld_vlr": paddle.zeros([]),
            "loss_kd": (outputs[0][0] - soft_labels[0]).square().mean(),
        }


class Detector(nn.Layer):
    def __init__(self, head: nn.Layer) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2D(3, 2, 8, stride=8), head

    def forward(self, batch: dict[str, paddle.Tensor]) -> Any:
        outputs = self.head(self.stem(batch["image"]))
        if not self.training:
            return {"bbox": outputs[0][0]}
        losses = self.head.get_loss(outputs, batch)
        return {**losses, "loss": sum(losses.values())}


def test_the_head_learns_from_the_teachers_outputs(ppdet_registered: None) -> None:
    paddle.seed(0)
    student, teacher = Detector(LDGFLHead()), Detector(LDGFLHead())
    terms = read_terms("ld", 2.0, start_epoch=1)
    distiller = Distiller(student, teacher, terms, 3)
    distiller.attach()
    student.train()
    batch = {"image": make_batch()["image"]}
    waiting = student(batch)
    assert waiting["loss_ld"].item() == waiting["loss_kd"].item() == 0.0
    assert waiting["loss"].item() == waiting["loss_qfl"].item()
    distiller.epoch = 1
    losses = student(batch)
    outputs = [model.head(model.stem(batch["image"])) for model in (student, teacher)]
    parts = [float((s[0] - t[0]).square().mean()) for s, t in zip(*outputs)]
    assert losses["distill_ld"].item() == pytest.approx(2.0 * sum(parts), rel=1e-5)
    total = losses["loss_qfl"].item() + losses["distill_ld"].item()
    assert losses["loss"].item() == pytest.approx(total, rel=1e-5)
    distiller.detach()
    with pytest.raises(TypeError):
        student(batch)


def test_heads_of_another_kind_are_one_line(both: Any) -> None:
    student, teacher = both
    with pytest.raises(ConfigError, match="'ld': the student's head is NoneType; expected LDG"):
        LDHeads(student, teacher)
    with pytest.raises(ConfigError, match="'ppyoloe': the teacher, Detector, has no PPYOLOEHead"):
        PPYOLOEHeads(student, Detector(LDGFLHead()))
    with pytest.raises(ConfigError, match="student's head has reg_max 4 and the teacher's 8"):
        LDHeads(Detector(LDGFLHead()), Detector(LDGFLHead(8)))
