"""Distillation in slim files: PaddleDetection's historical keys as settings of `Distill`.

PaddleDetection writes the teacher's configuration into the slim file itself, mostly with
`_BASE_`, its weights as ``pretrain_weights``, the method as ``slim_method`` and the loss as
``distill_loss``. The defaults below are those of its classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from slim_det.core.errors import ConfigError, nearest
from slim_det.core.schema import check_keys

_LOSSES = ("DistillYOLOv3Loss", "CWDFeatureLoss", "FGDFeatureLoss", "DistillPPYOLOELoss")
_METHODS = ("CWD", "FGD", "LD", "PPYOLOEDistill")

# Everything else in a historical file, other strategies aside, is the teacher's configuration.
SLIM_KEYS = {
    *("slim", "slim_method", "distill_loss", "distill_loss_name", "pruner", "Distill"),
    *_LOSSES,
}

Settings = dict[str, Any]


def read_distill(
    tree: Mapping[str, Any], path: str, others: Sequence[str], has_teacher: bool = False
) -> Settings:
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
    historical = _historical(tree, path)
    for key in ("loss", "weight", "pairs"):
        if historical and key in distill:
            raise ConfigError(
                f"{path}: Distill.{key} and {_named(tree)} are both given; leave one out"
            )
    distill = {**historical, **distill}
    own = SLIM_KEYS.union(others)
    rest = {key: value for key, value in tree.items() if key not in own}
    settings = {key: tree[key] for key in others if key in tree}
    if not distill.get("teacher") and "architecture" in rest:
        weights = rest.pop("pretrain_weights", None)
        distill["teacher"] = {"tree": rest, **({"weights": weights} if weights else {})}
        if distill.get("loss") == "ld":
            # The region in which distances are compared is a target of the student's batch.
            settings["TrainReader"] = _only(rest.get("TrainReader"), "batch_transforms")
        return {**settings, "Distill": distill}
    if not distill.get("teacher") and not has_teacher:
        raise ConfigError(
            f"{path}: Distill.teacher is missing; expected teacher: {{config: FILE.yml, weights: "
            "FILE.pdparams}, or the teacher's complete configuration as _BASE_"
        )
    return {**settings, **rest, "Distill": distill}


def _historical(tree: Mapping[str, Any], path: str) -> Settings:
    """``slim_method``, ``distill_loss`` and their sections as settings of `Distill`."""
    method, loss = tree.get("slim_method"), tree.get("distill_loss")
    if method and method not in _METHODS:
        raise ConfigError(
            f"{path}: slim_method: unknown method {method!r}{nearest(method, _METHODS)}"
        )
    if loss and loss not in _LOSSES:
        raise ConfigError(
            f"{path}: distill_loss: unknown loss {loss!r}{nearest(str(loss), _LOSSES)}"
        )
    if not method:
        return _yolov3(tree, path) if loss or tree.get(_LOSSES[0]) is not None else {}
    read, wanted = _READ[method]
    if wanted and loss != wanted:
        raise ConfigError(
            f"{path}: distill_loss: slim_method '{method}' needs {wanted}, found {loss!r}"
        )
    return read(tree, path)


def _named(tree: Mapping[str, Any]) -> str:
    return str(tree.get("slim_method") or tree.get("distill_loss") or _LOSSES[0])


def _section(tree: Mapping[str, Any], name: str, path: str, defaults: Settings) -> Settings:
    """A section with defaults for what it lacks."""
    given = tree.get(name)
    check_keys(given or {}, defaults, f"{path}: {name}")
    return {**defaults, **(given or {})}


def _yolov3(tree: Mapping[str, Any], path: str) -> Settings:
    loss = tree.get("distill_loss") or _LOSSES[0]
    if loss != _LOSSES[0]:
        raise ConfigError(
            f"{path}: distill_loss: '{loss}' needs a slim_method: {', '.join(_METHODS)}"
        )
    section = _section(tree, _LOSSES[0], path, {"weight": None})
    weight = section["weight"]
    return {"loss": "split"} if weight is None else {"loss": "split", "weight": weight}


def _cwd(tree: Mapping[str, Any], path: str) -> Settings:
    """Outputs of the neck; for GFL the class logits too."""
    section = _section(
        tree,
        "CWDFeatureLoss",
        path,
        {"tau": 1.0, "weight": 1.0, "normalize": False, **_CHANNELS},
    )
    term = {
        "loss": "cwd",
        "weight": section["weight"],
        "temperature": section["tau"],
        "normalize": section["normalize"],
    }
    layers = ["neck", "head.gfl_head_cls"] if tree.get("architecture") == "GFL" else ["neck"]
    return {"loss": None, "pairs": [pair for x in layers for pair in _levels(tree, x, term)]}


def _fgd(tree: Mapping[str, Any], path: str) -> Settings:
    """Outputs of the neck."""
    names = ("alpha", "beta", "gamma", "lambda")
    defaults = {"alpha": 0.001, "beta": 0.0005, "gamma": 0.001, "lambda": 0.000005}
    others = {"temp": 0.5, "loss_weight": 1.0, "normalize": False, **_CHANNELS}
    spelled = {f"{name}_fgd": defaults[name] for name in names}
    section = _section(tree, "FGDFeatureLoss", path, {**others, **spelled})
    term = {
        "loss": "fgd",
        "weight": section["loss_weight"],
        "temperature": section["temp"],
        "normalize": section["normalize"],
        "factors": {name: section[f"{name}_fgd"] for name in names},
    }
    return {"loss": None, "pairs": _levels(tree, "neck", term)}


def _ld(tree: Mapping[str, Any], path: str) -> Settings:
    return {"loss": "ld"}


def _ppyoloe(tree: Mapping[str, Any], path: str) -> Settings:
    """Outputs and feature maps; the total loss is an eighth of the sum."""
    section = _section(
        tree,
        "DistillPPYOLOELoss",
        path,
        {
            "loss_weight": {"logits": 4.0, "feat": 1.0},
            "logits_distill": True,
            "logits_loss_weight": {"class": 1.0, "iou": 2.5, "dfl": 0.5},
            "logits_ld_distill": False,
            "logits_ld_params": {"weight": 20000, "T": 10},
            "feat_distill": True,
            "feat_distiller": "fgd",
            "feat_distill_place": "neck_feats",
            # Channels are those of the two models.
            **dict.fromkeys(("teacher_width_mult", "student_width_mult", "feat_out_channels")),
        },
    )
    settings: Settings = {"loss": None, "total_factor": 0.125, "pairs": []}
    weights, soft = section["loss_weight"], section["logits_ld_params"]
    if section["logits_distill"] and weights["logits"]:
        settings["loss"] = "ppyoloe"
        settings["weight"] = weights["logits"]
        ld = soft["weight"] if section["logits_ld_distill"] else 0.0
        settings["factors"] = {**section["logits_loss_weight"], "ld": ld}
    if section["feat_distill"] and weights["feat"]:
        kind, place = section["feat_distiller"], section["feat_distill_place"]
        if kind not in _FEATURES or place not in _PLACES:
            raise ConfigError(
                f"{path}: DistillPPYOLOELoss: feat_distiller {kind!r} of {place!r} is not "
                f"supported; expected {', '.join(_FEATURES)} of {' or '.join(_PLACES)}"
            )
        term = {**_FEATURES[kind], "weight": _FEATURES[kind].get("weight", 1.0) * weights["feat"]}
        layer = _PLACES[place]
        settings["pairs"] = [{"student": layer, "teacher": layer, "normalize": True, **term}]
    return settings


def _levels(tree: Mapping[str, Any], layer: str, term: Settings) -> list[Settings]:
    """A pair for each name in ``distill_loss_name``, which are the levels in order."""
    names = tree.get("distill_loss_name")
    if not names:
        return [{"student": layer, "teacher": layer, **term}]
    return [
        {"student": f"{layer}[{level}]", "teacher": f"{layer}[{level}]", **term}
        for level in range(len(names))
    ]


def _only(section: Any, *keys: str) -> Settings:
    return {key: section[key] for key in keys if key in (section or {})}


_READ: dict[str, tuple[Callable[[Mapping[str, Any], str], Settings], str | None]] = {
    "CWD": (_cwd, "CWDFeatureLoss"),
    "FGD": (_fgd, "FGDFeatureLoss"),
    "LD": (_ld, None),
    "PPYOLOEDistill": (_ppyoloe, "DistillPPYOLOELoss"),
}
"""Method -> how it is read, and the loss that it needs."""

# Not read: adaptors have the channels of the two models.
_CHANNELS: Settings = {"student_channels": None, "teacher_channels": None}

_PLACES = {"neck_feats": "neck", "backbone_feats": "backbone"}
_FEATURES: dict[str, Settings] = {
    "cwd": {"loss": "cwd", "temperature": 1.0},
    "fgd": {
        "loss": "fgd",
        "factors": {"alpha": 1e-5, "beta": 5e-6, "gamma": 1e-5, "lambda": 5e-8},
    },
    "pkd": {"loss": "feature_l2", "weight": 0.5},
    "mimic": {"loss": "feature_l2"},
}
