"""PaddleDetection's section ``export``: each of its keys is honoured, or refused by name.

`training/config_checks.py` refuses the keys at the top level that leave out parts of a model.
"""

from __future__ import annotations

from typing import Any

from slim_det.core.errors import ConfigError
from slim_det.core.schema import check_keys

FUSE_CONV_BN = "fuse_conv_bn"

# Key of `export` -> the one value that is exported; None for both.
_EXPORT = {"post_process": True, "nms": True, "benchmark": False, FUSE_CONV_BN: None}


def fuses_batch_norm(cfg: Any) -> bool:
    """Whether batch norm is folded into the convolutions of a float model too."""
    return bool((cfg.get("export") or {}).get(FUSE_CONV_BN, False))


def check_export_keys(cfg: Any) -> None:
    """Check the section ``export``.

    Raises:
        ConfigError: A key of ``export`` is unknown or no truth value, or a value asks for a form
            of the model that is not exported.
    """
    given = cfg.get("export") or {}
    check_keys(given, _EXPORT, "export")
    for key, value in given.items():
        if not isinstance(value, bool):
            raise ConfigError(f"export.{key}: {value!r} is not valid; expected true or false")
        if value is not _EXPORT[key] is not None:
            raise ConfigError(
                f"export.{key}: {str(value).lower()} is not supported; expected "
                f"{str(_EXPORT[key]).lower()}: an artifact is compared with its model by its "
                "boxes, and evaluated and run with them"
            )
