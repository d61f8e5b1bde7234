"""The chain of strategies in a slim file: PaddleDetection's joint names, and the order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slim_det.compress.strategy import in_order, registered_strategies
from slim_det.core.errors import ConfigError, nearest
from slim_det.core.schema import check_keys

JOINT = {"DistillPrune": ("Pruner", "Distill"), "PrunerQAT": ("Pruner", "QAT")}
"""PaddleDetection's names for two strategies at once."""

# Key of PaddleDetection's PrunerQAT -> strategy, and its key there.
_PRUNER_QAT = {
    "criterion": ("Pruner", "criterion"),
    "pruned_params": ("Pruner", "pruned_params"),
    "pruned_ratios": ("Pruner", "pruned_ratios"),
    "print_prune_params": ("Pruner", "print_params"),
    "quant_config": ("QAT", "quant_config"),
    "print_qat_model": ("QAT", "print_model"),
}

# Of PaddleSlim's PTQ: the export always folds batch norms, and the command line names its folder.
_WITHOUT_EFFECT = ("output_dir", "fuse", "fuse_list")


def expand_strategies(names: list[str], path: str) -> tuple[str, ...]:
    """Replace joint names by their strategies, and check the order.

    Args:
        names: The value of ``slim``.
        path: The file, for messages.

    Raises:
        ConfigError: A strategy is named twice or comes too late, or two exclude each other.
    """
    found = [part for name in names for part in JOINT.get(name, (name,))]
    kinds = registered_strategies()
    for name in found:
        if found.count(name) > 1:
            raise ConfigError(f"{path}: slim: '{name}' is named twice")
        for other, reason in kinds[name].excludes.items():
            if other in found:
                raise ConfigError(
                    f"{path}: slim: '{other}' and '{name}' exclude each other: {reason}"
                )
    ordered = in_order(found)
    for late, name in zip(found, ordered):
        if late != name:
            raise ConfigError(
                f"{path}: slim: '{name}' comes after '{late}'; expected slim: "
                f"[{', '.join(ordered)}]"
            )
    return tuple(found)


def write_out_sections(tree: dict[str, Any], path: str) -> None:
    """Distribute the keys of a joint section to its strategies, in place.

    Args:
        tree: The content of the slim file without ``slim``.
        path: The file, for messages.

    Raises:
        ConfigError: ``pruner`` or a key of ``PrunerQAT`` is unknown, or a section is given twice.
    """
    pruner = tree.pop("pruner", None) or "Pruner"
    if pruner != "Pruner":
        raise ConfigError(
            f"{path}: pruner: '{pruner}' is not supported{nearest(pruner, ['Pruner'])}"
        )
    _split_pruner_qat(tree, path)
    if isinstance(tree.get("PTQ"), Mapping):
        tree["PTQ"] = {k: v for k, v in tree["PTQ"].items() if k not in _WITHOUT_EFFECT}


def check_override(key: str) -> None:
    """Refuse an override of a joint section, which would have no effect.

    Raises:
        ConfigError: ``key``, from ``-o``, is in such a section.
    """
    section, _, inner = key.partition(".")
    if section not in JOINT:
        return
    if section == "PrunerQAT" and inner in _PRUNER_QAT:
        places = ".".join(_PRUNER_QAT[inner])
    else:
        places = " or ".join(f"{name}.KEY" for name in JOINT[section])
    raise ConfigError(
        f"-o {key}: '{section}' is written out as {' and '.join(JOINT[section])}; "
        f"expected -o {places}=VALUE"
    )


def _split_pruner_qat(tree: dict[str, Any], path: str) -> None:
    if "PrunerQAT" not in tree:
        return
    section = tree.pop("PrunerQAT")
    section = {} if section is None else section
    check_keys(section, _PRUNER_QAT, f"{path}: PrunerQAT")
    for name in ("Pruner", "QAT"):
        if name in tree:
            raise ConfigError(f"{path}: PrunerQAT and {name} are both given; leave one out")
    for key, value in section.items():
        strategy, own = _PRUNER_QAT[key]
        tree.setdefault(strategy, {})[own] = value
