"""Losses of what two heads keep of one training step: PP-YOLOE's outputs, GFL's distributions.

They get mappings from `slim_det.compress.distill.heads` in place of tensors.
"""

from __future__ import annotations

from collections.abc import Mapping

import paddle
from paddle import Tensor
from paddle.nn import functional
from ppdet.modeling.losses.iou_loss import GIoULoss

from slim_det.compress.distill.loss import Options, log_softmax

_giou = GIoULoss()


def ppyoloe(
    student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], options: Options
) -> Tensor:
    """Distillation of PP-YOLOE's outputs, the logits part of PaddleDetection's PP-YOLOE+.

    With class probabilities p of all anchors; boxes b and logits d of their distances [P, 4, bins]
    of the P anchors that are assigned to an object, with the weight w of the assignment::

        class * sum(|p_s - p_t|^2 CE(p_s, p_t)) / sum of all assigned scores
        + iou * sum(w (1 - GIoU(b_s, b_t))) / sum(w)
        + dfl * sum(w mean_4(CE(softmax d_s, softmax d_t))) / sum(w)
        + ld * T^2 mean(KL(softmax(p_t / T), softmax(p_s / T))) over the P anchors and the classes

    Both heads have assigned the same anchors. Where there is no object, only classes are compared.
    """
    factors = options.factors
    ours, theirs = student["pred_cls_scores"], teacher["pred_cls_scores"].detach()
    entropy = functional.binary_cross_entropy(ours, theirs, reduction="none")
    value = factors["class"] * ((ours - theirs).square() * entropy).sum() / student["pos_num"]
    if "pred_bboxes_pos" not in student or "pred_bboxes_pos" not in teacher:
        return value.reshape([])
    weight = student["bbox_weight"]
    total = weight.sum()
    boxes = _giou(student["pred_bboxes_pos"], teacher["pred_bboxes_pos"].detach())
    value += factors["iou"] * (boxes * weight).sum() / total
    target = functional.softmax(teacher["pred_dist_pos"].detach(), axis=-1)
    distances = -(target * log_softmax(student["pred_dist_pos"], axis=-1)).sum(axis=-1)
    value += factors["dfl"] * (distances.mean(axis=1, keepdim=True) * weight).sum() / total
    if factors["ld"]:
        assigned = student["mask_positive_select"]
        value += factors["ld"] * _softened(ours[assigned], theirs[assigned], options.temperature)
    return value.reshape([])


def ld(student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], options: Options) -> Tensor:
    """Localization distillation (Zheng et al., CVPR 2022, arXiv 2102.12252).

    ppdet's `LDGFLHead` computes it from the teacher's outputs: KL of the distributions of
    distances where objects are assigned and in the valuable region around them, and of the classes,
    each with the factor of the head's configuration. This is their sum.
    """
    return sum(student.values(), paddle.zeros([]))


def _softened(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """``T^2`` times the mean over all elements of KL(teacher || student), softmax over the last."""
    log_guess = log_softmax(student / temperature, axis=-1)
    target = functional.softmax(teacher / temperature, axis=-1)
    return temperature**2 * functional.kl_div(log_guess, target, reduction="mean")
