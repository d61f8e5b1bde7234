"""Reads and checks configurations: ppdet's YAML with ``_BASE_``, ``-o`` overrides, slim files."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from ppdet.core.config.schema import SchemaDict
from ppdet.core.workspace import global_config

from slim_det.compress.chain import JOINT, check_override, expand_strategies, write_out_sections
from slim_det.compress.strategy import registered_strategies
from slim_det.core.errors import ConfigError, nearest, one_line
from slim_det.core.safe_yaml import merge, read_tree
from slim_det.core.schema import check_keys
from slim_det.training.config_checks import check_parts
from slim_det.training.config_scope import unset

# Keys that ppdet or slim_det read at the top level of a configuration, besides components.
TOP_LEVEL_KEYS = frozenset(
    """
    amp amp_level architecture bias check_lr classwise custom_black_list custom_white_list
    cycle_epoch data_format distill_loss distill_loss_name ema_black_list ema_decay
    ema_decay_type ema_filter_no_grad enable_ce epoch exclude_nms exclude_post_process export
    export_eb export_onnx filename find_unused_parameters fleet for_distill init_loss_scaling
    log_iter map_type master_grad metric multi_scale_eval norm_type num_classes output_eval
    pretrain_weights print_flops print_params profiler_options quant_batch_num save_dir
    save_prediction_only skip_teacher_eval slim slim_method snapshot_epoch sync_bn to_static
    use_ema use_fused_allreduce_gradients use_gpu use_mlu use_npu use_shared_memory use_vdl
    use_wandb use_xpu vdl_log_dir weights widerface_ground_truth worker_num
    """.split()
)

# Strategies of PaddleDetection that slim_det does not have, and why.
_NOT_BUILT = {
    "OFA": "PaddleSlim's once-for-all training, which it does not have",
    "UnstructuredPruner": "single weights set to zero, which no engine here runs faster",
}


@dataclass(frozen=True)
class SlimConfig:
    """A checked slim file.

    Attributes:
        path: The file.
        strategies: Names in the order in which they are applied.
        settings: Keys to merge into the configuration: those of the file without ``slim``,
            unless a strategy translates them.
    """

    path: str
    strategies: tuple[str, ...]
    settings: dict[str, Any]


def load_config(path: str | Path, overrides: list[str] | None = None) -> Any:
    """Read a configuration with its bases and overrides into ppdet's global one.

    Args:
        path: YAML file.
        overrides: ``Key.sub=value`` texts, values in YAML.

    Returns:
        ppdet's global configuration.

    Raises:
        ConfigError: A file is missing or unsafe, or a key is unknown.
    """
    return load_tree({**read_tree(path), "filename": Path(path).stem}, path, overrides)


def load_tree(tree: Mapping[str, Any], path: str | Path, overrides: list[str] | None = None) -> Any:
    """Like `load_config`, for a configuration that was already read from ``path``."""
    _check_components(tree, str(path))
    _merge_into_config(tree)
    apply_overrides(overrides or [])
    if "architecture" not in global_config:
        raise ConfigError(f"{path}: no 'architecture' is given; expected e.g. architecture: YOLOv3")
    _check_part("architecture", global_config["architecture"], str(path))
    for key, value in (("log_iter", 20), ("use_gpu", False), ("save_dir", "output")):
        global_config.setdefault(key, value)
    return global_config


def load_slim_config(path: str | Path) -> SlimConfig:
    """Read a slim file.

    Args:
        path: YAML file with ``slim: Name`` or ``slim: [Name, ...]``, each the name of a strategy
            that is registered with ppdet, or PaddleDetection's name for two.

    Raises:
        ConfigError: The file is missing or unsafe, a key or strategy is unknown, or a strategy
            lacks a setting.
    """
    registered = registered_strategies()
    available = [*registered, *JOINT]
    tree = read_tree(path)
    names = tree.pop("slim", None)
    strategies = [names] if isinstance(names, str) else names
    if not isinstance(strategies, list) or not strategies:
        raise ConfigError(f"{path}: no 'slim' is given; expected slim: {available[0]}")
    for name in strategies:
        if name not in available:
            reason = _NOT_BUILT.get(str(name))
            known = f" ({reason})" if reason else ""
            expected = f"; valid: {', '.join(available)}" if reason else nearest(name, available)
            raise ConfigError(f"{path}: slim: unknown strategy {name!r}{known}{expected}")
    chain = expand_strategies(strategies, str(path))
    write_out_sections(tree, str(path))
    _check_components(tree, str(path))
    for name in chain:
        tree = registered[name].read_slim_file(tree, str(path))
    for key in tree:
        if key not in TOP_LEVEL_KEYS and key not in global_config:
            raise ConfigError(f"{path}: unknown key '{key}'{_suggest(key)}")
    return SlimConfig(str(path), chain, tree)


def apply_overrides(overrides: list[str]) -> None:
    """Merge ``Key.sub=value`` texts into ppdet's global configuration.

    Raises:
        ConfigError: A text has no ``=``, its value is not YAML, or its key is unknown; or a
            part of the merged configuration is not valid (see `config_checks`).
    """
    tree: dict[str, Any] = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ConfigError(f"-o {text}: expected Key=value or Key.sub=value")
        check_override(key)
        try:
            parsed = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"-o {text}: the value is not YAML: {one_line(error)}") from error
        *parents, last = key.split(".")
        if (parents or [last])[0] not in global_config.keys() | TOP_LEVEL_KEYS:
            raise ConfigError(f"-o {text}: unknown key '{key}'{_suggest(key.split('.')[0])}")
        node: dict[str, Any] = tree
        there: Any = global_config
        for parent in parents:
            there = there.get(parent) if isinstance(there, Mapping) else None
            if isinstance(there, list):
                raise ConfigError(f"-o {text}: '{parent}' is a list; give the complete list")
            node = node.setdefault(parent, {})
        node[last] = parsed
    _check_components(tree, "-o")
    _merge_into_config(tree)
    check_parts(global_config)


def _merge_into_config(tree: Mapping[str, Any]) -> None:
    """Merge checked keys; a component given as null loses its settings."""
    for name, value in tree.items():
        if value is None and isinstance(global_config.get(name), SchemaDict):
            global_config[name] = unset(global_config[name])
        else:
            merge(global_config, {name: value})


def _check_components(tree: Mapping[str, Any], where: str) -> None:
    """Check the keys of every component against what its constructor takes."""
    for name, value in tree.items():
        schema = global_config.get(name)
        if isinstance(schema, SchemaDict):
            _check_component(name, value, where)
        elif name not in TOP_LEVEL_KEYS and name not in global_config:
            suggestion = _suggest(name, cutoff=0.8)
            if suggestion:
                raise ConfigError(f"{where}: unknown key '{name}'{suggestion}")


def _check_component(name: str, value: Any, where: str) -> None:
    if isinstance(value, (str, int, float, list)):
        check_keys(value, (), f"{where}: {name}")
    if not isinstance(value, Mapping):  # None, or a component built by a tag such as !VOCDataSet
        return
    target = str(value.get("name", name))
    schema = global_config.get(target)
    if not isinstance(schema, SchemaDict):
        raise ConfigError(f"{where}: {name}.name: unknown component '{target}'{_suggest(target)}")
    parameters = inspect.signature(getattr(schema.pymodule, target).__init__).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    settings = {key: part for key, part in value.items() if key != "name"}
    check_keys(settings, {*parameters, *schema.schema} - {"self", "name"}, f"{where}: {name}")
    for key, part in settings.items():
        if _is_component(schema, key):
            _check_part(f"{name}.{key}", part, where)


def _is_component(schema: SchemaDict, key: str) -> bool:
    """Whether a setting names another component, by ppdet's declaration or by its default."""
    default = schema.schema[key].default if schema.has_default(key) else None
    named = isinstance(default, str) and isinstance(global_config.get(default), SchemaDict)
    return named or key in (getattr(schema, "inject", None) or ())


def _check_part(name: str, part: Any, where: str) -> None:
    """Check a component that another one refers to, by name or with its own settings."""
    if isinstance(part, Mapping) and "name" in part:
        _check_component(name, part, where)
    elif isinstance(part, str) and part not in global_config:
        raise ConfigError(f"{where}: {name}: unknown component '{part}'{_suggest(part)}")


def _suggest(name: str, cutoff: float = 0.5) -> str:
    components = [key for key, value in global_config.items() if isinstance(value, SchemaDict)]
    known = sorted(TOP_LEVEL_KEYS) + components
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=cutoff)
    return f"; did you mean '{close[0]}'?" if close else ""
