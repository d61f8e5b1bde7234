"""What ppdet 2.6 expects of Paddle and Paddle no longer does."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import paddle
from paddle import Tensor
from paddle.nn import functional
from ppdet.modeling import assigners
from ppdet.modeling.heads import TTFHead
from ppdet.modeling.losses import gfocal_loss

_concat_of_paddle, _arange_of_paddle = paddle.concat, paddle.arange
_forward_of_ppdet = {
    kind: kind.forward
    for kind in vars(assigners).values()
    if hasattr(kind, "forward") and "gt_labels" in inspect.signature(kind.forward).parameters
}
_loss_of_ttfnet = TTFHead.get_loss


def follow_paddle() -> None:
    """Replace functions of Paddle and ppdet, so that detectors run that otherwise fail.

    - `paddle.concat` joins tensors without dimensions into a list. Two-stage detectors join
      elements of tensors, which had the shape [1] when the code was written, and have no
      dimension since Paddle 2.6.
    - Assigners, such as those of PP-YOLOE, get labels of 64 bits. They add numbers of the type of
      the labels, which has 32 bits, to indices of 64, and Paddle no longer widens the smaller ones.
    - The quality focal loss of GFL and PicoDet multiplies floats with booleans.
    - TTFNet's loss counts pixels in floats. It adds integers to them, which Paddle refuses too.
    """
    paddle.concat = _concat
    for kind, forward in _forward_of_ppdet.items():
        kind.forward = _with_wide_labels(forward)
    TTFHead.get_loss = _ttfnet_loss
    gfocal_loss.quality_focal_loss = quality_focal_loss


@paddle.jit.not_to_static
def _concat(x: Any, axis: Any = 0, name: Any = None, **kwargs: Any) -> Any:
    if isinstance(x, (list, tuple)) and x and not any(len(tensor.shape) for tensor in x):
        x = [tensor.reshape([1]) for tensor in x]
    return _concat_of_paddle(x, axis, name, **kwargs)


def _with_wide_labels(forward: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(forward)

    @functools.wraps(forward)
    def assign(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs)
        labels = given.arguments.get("gt_labels")
        if isinstance(labels, paddle.Tensor):
            given.arguments["gt_labels"] = labels.astype("int64")
        return forward(*given.args, **given.kwargs)

    return assign


@functools.wraps(_loss_of_ttfnet)
def _ttfnet_loss(*args: Any, **kwargs: Any) -> Any:
    with _counting_in_floats():
        return _loss_of_ttfnet(*args, **kwargs)


@contextlib.contextmanager
def _counting_in_floats() -> Iterator[None]:
    """While active, `paddle.arange` gives floats where 32-bit integers are asked for."""

    def arange(*args: Any, dtype: Any = None, **kwargs: Any) -> Any:
        return _arange_of_paddle(*args, dtype="float32" if dtype == "int32" else dtype, **kwargs)

    paddle.arange = arange
    try:
        yield
    finally:
        paddle.arange = _arange_of_paddle


def quality_focal_loss(
    pred: Tensor, target: tuple[Tensor, Tensor], beta: float = 2.0, use_sigmoid: bool = True
) -> Tensor:
    """Quality focal loss (Li et al., NeurIPS 2020, arXiv 2006.04388).

    ``|y - p|^beta`` times the cross entropy of p with y, summed over the classes. y is the quality
    at the class of a position and 0 at every other class, and everywhere in the background.

    Args:
        pred: Logits [N, C], or probabilities without ``use_sigmoid``.
        target: Class of each position, integers [N] (C and above, or below 0, is background), and
            its quality, floats [N] in 0 to 1.
        beta: Exponent.
        use_sigmoid: Whether ``pred`` are logits.

    Returns:
        Floats [N].
    """
    label, score = target
    classes = pred.shape[1]
    is_object = paddle.logical_and(label >= 0, label < classes)
    inside = paddle.where(is_object, label, paddle.zeros_like(label)).astype("int64")
    quality = score.astype("float32") * is_object.astype("float32")
    wanted = functional.one_hot(inside, classes) * quality.unsqueeze(-1)
    if use_sigmoid:
        entropy = functional.binary_cross_entropy_with_logits(pred, wanted, reduction="none")
    else:
        entropy = functional.binary_cross_entropy(pred, wanted, reduction="none")
    guess = functional.sigmoid(pred) if use_sigmoid else pred
    return ((wanted - guess).abs().pow(beta) * entropy).sum(axis=1)
