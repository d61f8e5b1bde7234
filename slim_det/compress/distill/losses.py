"""Losses between a student and its teacher: functions of two tensors, and the table of them.

A function takes the student's tensor, the teacher's and `Options`, and returns a float32 scalar.
The teacher's tensor is detached. What becomes a probability is given as logits, so that none is
rounded to 0 or 1 before its logarithm is taken. Shapes are the same on both sides unless a loss
says otherwise; every function raises `ConfigError` where shapes do not fit.

N is the batch, C the channels, H and W rows and columns. A raw YOLO output is [N, na*(5+K), H, W]
with na anchors, each of which has x, y, w, h, and logits of objectness and K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import paddle
from paddle import Tensor
from paddle.nn import functional

from slim_det.compress.distill.focal_global import FocalGlobalContext, fgd
from slim_det.compress.distill.head_losses import ld, ppyoloe
from slim_det.compress.distill.loss import Loss, Options, checked, log_softmax, pair
from slim_det.core.errors import ConfigError
from slim_det.detectors.yolov3_outputs import BOX_VALUES, CLASSES, OBJECTNESS, WH, XY


def l2(student: Tensor, teacher: Tensor, options: Options) -> Tensor:
    """Mean squared difference of one raw YOLO output.

    The rule of PaddleDetection's first YOLOv3 distillation, with its weight of 100: a mean over
    all cells is small beside a detection loss that sums over them.
    """
    return _mean_squared_difference("l2", student, teacher)


def split(student: Tensor, teacher: Tensor, options: Options) -> Tensor:
    """Objectness-weighted distillation of one raw YOLO output.

    After Mehta and Ozturk 2018 (arXiv 1805.06361), as PaddleDetection's ``DistillYOLOv3Loss``
    has it. With p = sigmoid(teacher), CE the cross entropy of a logit with a probability, and
    each mean over all its elements::

        mean((CE(x, p_x) + CE(y, p_y) + |w - w_t| + |h - h_t|) * p_obj)
        + mean(CE(classes, p_classes) * p_obj)
        + mean(CE(obj, 1 where p_obj > 0.5 else 0))

    So boxes and classes count where the teacher sees an object; of the background the student
    learns only that there is none. The cross entropies keep the teacher's own entropy: the value
    for equal tensors is not 0. The weight of 1000 is the published one, for the reason given in
    `l2`.
    """
    s, t = _by_anchor("split", student, teacher, options.num_classes)
    seen = functional.sigmoid(t[:, :, OBJECTNESS])
    xy = _cross_entropy(s[:, :, XY], functional.sigmoid(t[:, :, XY])).sum(axis=2)
    wh = paddle.abs(s[:, :, WH] - t[:, :, WH]).sum(axis=2)
    classes = _cross_entropy(s[:, :, CLASSES], functional.sigmoid(t[:, :, CLASSES]))
    is_object = (t[:, :, OBJECTNESS] > 0).astype("float32")
    objectness = _cross_entropy(s[:, :, OBJECTNESS], is_object)
    return ((xy + wh) * seen).mean() + (classes * seen.unsqueeze(2)).mean() + objectness.mean()


def fsp(student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], options: Options) -> Tensor:
    """Mean squared difference of two matrices of flow (Yim et al., CVPR 2017).

    The flow of a layer with input A and output B is ``F[n, m, k]``, the mean over all H*W places
    of ``A[n, m] * B[n, k]``: which channels of both are active together. As places are averaged
    out, student and teacher may have different H and W.

    Args:
        student: Input [N, M, H, W] and output [N, K, H, W] of a layer.
        teacher: The same of the teacher, with the student's N, M and K.
        options: Not read.
    """
    s, t = _flow("student", student), _flow("teacher", teacher).detach()
    if s.shape != t.shape:
        raise ConfigError(
            f"distillation loss 'fsp': student {_in_and_out(student)} and teacher "
            f"{_in_and_out(teacher)} must have equal channels"
        )
    return (s - t).square().mean()


def soft_label(student: Tensor, teacher: Tensor, options: Options) -> Tensor:
    """Cross entropy of two softened softmaxes over axis 1 (Hinton et al., arXiv 1503.02531).

    ``-T^2 * mean(sum_c softmax(t/T)_c * log softmax(s/T)_c)`` for logits [N, C, ...], the mean
    over everything but axis 1. The gradient with respect to a logit shrinks with 1/T^2; the factor
    T^2 keeps its size, so that the weight need not follow the temperature. PaddleSlim has no such
    factor: equal at T = 1. The minimum is T^2 times the entropy of the teacher's softmax.
    """
    s, t = pair("soft_label", student, teacher, axes="N, C, ...")
    target = functional.softmax(t / options.temperature, axis=1)
    log_guess = log_softmax(s / options.temperature, axis=1)
    return -(options.temperature**2) * (target * log_guess).sum(axis=1).mean()


def feature_l2(student: Tensor, teacher: Tensor, options: Options) -> Tensor:
    """Mean squared difference of any two tensors, the hints of Romero et al., arXiv 1412.6550.

    The paper has half the squared distance; here a mean, so that the weight need not follow the
    size of the map.
    """
    return _mean_squared_difference("feature_l2", student, teacher)


def cwd(student: Tensor, teacher: Tensor, options: Options) -> Tensor:
    """Channel-wise distillation of maps [N, C, H, W] (Shu et al., ICCV 2021, arXiv 2011.13256).

    Every channel becomes a distribution over its H*W places, a softmax at temperature T; the loss
    is ``T^2 / (N*C)`` times the sum of KL(teacher || student) over images and channels. A channel
    thus teaches where it is active and not how strongly. T^2 keeps the size of the gradient, as
    in `soft_label`. Weight 5 and T = 1 are PaddleDetection's setting for detectors.
    """
    s, t = pair("cwd", student, teacher, axes="N, C, H, W")
    log_guess = log_softmax(s.flatten(2) / options.temperature, axis=-1)
    log_target = log_softmax(t.flatten(2) / options.temperature, axis=-1)
    divergence = (log_target.exp() * (log_target - log_guess)).sum(axis=-1)
    return options.temperature**2 * divergence.mean()


def dml(student: Tensor, teacher: Tensor, options: Options) -> Tensor:
    """Deep mutual learning (Zhang et al., arXiv 1706.00384) for one raw YOLO output.

    The paper takes KL(peer || student) of two softmaxes. The logits of YOLO end in sigmoids, so
    each of x, y, objectness and classes is the probability p of a yes or no::

        p_t * (log p_t - log p_s) + (1 - p_t) * (log(1 - p_t) - log(1 - p_s))

    and the loss is the mean over them. w and h are no probabilities and are left out. The teacher
    is the peer.
    """
    s, t = (
        paddle.concat([raw[:, :, XY], raw[:, :, OBJECTNESS:]], axis=2)
        for raw in _by_anchor("dml", student, teacher, options.num_classes)
    )
    log_yes = functional.log_sigmoid(t) - functional.log_sigmoid(s)
    log_no = functional.log_sigmoid(-t) - functional.log_sigmoid(-s)
    return (functional.sigmoid(t) * log_yes + functional.sigmoid(-t) * log_no).mean()


LOSSES: dict[str, Loss] = {
    "l2": Loss(l2, weight=100.0, on_yolo_outputs=True),
    "split": Loss(split, weight=1000.0, on_yolo_outputs=True),
    "fsp": Loss(fsp, weight=1.0, reads="flow"),
    "soft_label": Loss(soft_label, weight=1.0, temperature=1.0),
    "feature_l2": Loss(feature_l2, weight=1.0, adapts=True),
    "cwd": Loss(cwd, weight=5.0, temperature=1.0, adapts=True),
    "dml": Loss(dml, weight=1.0, on_yolo_outputs=True, is_mutual=True),
    "fgd": Loss(
        fgd,
        weight=1.0,
        temperature=0.5,
        adapts=True,
        needs_boxes=True,
        factors={"alpha": 0.001, "beta": 0.0005, "gamma": 0.001, "lambda": 0.000005},
        make_context=FocalGlobalContext,
    ),
    "ppyoloe": Loss(
        ppyoloe,
        weight=4.0,
        temperature=10.0,
        reads="head",
        factors={"class": 1.0, "iou": 2.5, "dfl": 0.5, "ld": 0.0},
    ),
    "ld": Loss(ld, weight=1.0, reads="head"),
}
"""Name in a slim file -> loss."""


def _mean_squared_difference(loss: str, student: Tensor, teacher: Tensor) -> Tensor:
    s, t = pair(loss, student, teacher)
    return (s - t).square().mean()


def _cross_entropy(logits: Tensor, probabilities: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(logits, probabilities, reduction="none")


def _flow(side: str, tensors: Sequence[Tensor]) -> Tensor:
    """Means over places of all products of an input and an output channel, float32 [N, M, K]."""
    if isinstance(tensors, Tensor) or len(tensors) != 2:
        raise ConfigError(
            f"distillation loss 'fsp': expected the input and the output of the {side}'s layer"
        )
    taken, given = (checked("fsp", side, tensor, "N, C, H, W") for tensor in tensors)
    places = taken.shape[2] * taken.shape[3]
    if [taken.shape[0], *taken.shape[2:]] != [given.shape[0], *given.shape[2:]]:
        raise ConfigError(
            f"distillation loss 'fsp': the {side}'s layer turns {_in_and_out(tensors)}; "
            "expected one that keeps height and width"
        )
    # Sums over so many places would overflow or lose their digits in half precision.
    with paddle.amp.auto_cast(enable=False):
        return paddle.matmul(taken.flatten(2), given.flatten(2), transpose_y=True) / places


def _in_and_out(tensors: Sequence[Tensor]) -> str:
    return " -> ".join(str(list(tensor.shape)) for tensor in tensors)


def _by_anchor(
    loss: str, student: Tensor, teacher: Tensor, num_classes: int
) -> tuple[Tensor, Tensor]:
    """Both raw YOLO outputs as float32 [N, na, 5+K, H, W], the teacher's detached."""
    s, t = pair(loss, student, teacher, axes="N, na*(5+K), H, W")
    batch, channels, height, width = s.shape
    per_anchor = BOX_VALUES + num_classes
    if num_classes < 1 or channels % per_anchor:
        raise ConfigError(
            f"distillation loss '{loss}': {channels} channels of the raw YOLO output "
            f"{list(s.shape)} are not a multiple of 5 + num_classes, with num_classes {num_classes}"
        )
    shape = [batch, channels // per_anchor, per_anchor, height, width]
    return s.reshape(shape), t.reshape(shape)
