"""Distillation in slim files: PaddleDetection's historical keys as settings of `Distill`.

PaddleDetection writes the teacher's configuration into the slim file itself, mostly with
`_BASE_`, its weights as ``pretrain_weights``, and the loss as ``distill_loss``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from slim_det.core.errors import ConfigError

HISTORICAL_LOSS = "DistillYOLOv3Loss"

# Everything else in a historical file, other strategies aside, is the teacher's configuration.
_SLIM_KEYS = {"slim", "slim_method", "distill_loss", HISTORICAL_LOSS, "pruner", "Distill"}

_SUPPORTED = (
    "supported are distill_loss: DistillYOLOv3Loss, and the losses of Distill.loss and "
    "Distill.pairs (l2, split, fsp, soft_label, feature_l2, cwd, dml)"
)


def read_distill(
    tree: Mapping[str, Any], path: str, others: Sequence[str], has_teacher: bool = False
) -> dict[str, Any]:
    """Translate a slim file with `Distill` into settings for the student's configuration.

    Args:
        tree: The file without ``slim`` and ``pruner``.
        path: The file, for messages.
        others: Names of other strategies, whose settings in the same file are the student's.
        has_teacher: Whether the configuration names a teacher already.

    Returns:
        Settings to merge. Of a historical file, only those of strategies; the rest becomes the
        ``teacher`` of `Distill`: ``{"tree": CONFIGURATION, "weights": FILE}``.

    Raises:
        ConfigError: There is no teacher, or a loss or method is not supported.
    """
    distill = tree.get("Distill") or {}
    if not isinstance(distill, Mapping):
        raise ConfigError(f"{path}: Distill: expected a mapping of keys, found {distill!r}")
    distill = {**distill, **_historical_loss(tree, distill, path)}
    own = _SLIM_KEYS.union(others)
    rest = {key: value for key, value in tree.items() if key not in own}
    settings = {key: tree[key] for key in others if key in tree}
    if not distill.get("teacher") and "architecture" in rest:
        weights = rest.pop("pretrain_weights", None)
        distill["teacher"] = {"tree": rest, **({"weights": weights} if weights else {})}
        return {**settings, "Distill": distill}
    if not distill.get("teacher") and not has_teacher:
        raise ConfigError(
            f"{path}: Distill.teacher is missing; expected teacher: {{config: FILE.yml, weights: "
            "FILE.pdparams}, or the teacher's complete configuration as _BASE_"
        )
    return {**settings, **rest, "Distill": distill}


def _historical_loss(
    tree: Mapping[str, Any], distill: Mapping[str, Any], path: str
) -> dict[str, Any]:
    """``distill_loss`` and its section as settings of `Distill`."""
    method, loss = tree.get("slim_method"), tree.get("distill_loss")
    if method:
        raise ConfigError(f"{path}: slim_method: '{method}' is not supported; {_SUPPORTED}")
    if loss and loss != HISTORICAL_LOSS:
        raise ConfigError(f"{path}: distill_loss: '{loss}' is not supported; {_SUPPORTED}")
    section = tree.get(HISTORICAL_LOSS)
    if not loss and section is None:
        return {}
    for key in ("loss", "weight"):
        if key in distill:
            raise ConfigError(
                f"{path}: Distill.{key} and {HISTORICAL_LOSS} are both given; leave one out"
            )
    weight = section.get("weight") if isinstance(section, Mapping) else None
    return {"loss": "split"} if weight is None else {"loss": "split", "weight": weight}
