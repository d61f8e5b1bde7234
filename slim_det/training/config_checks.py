"""Checks the parts of a configuration that are not components of ppdet.

In readers' transforms, the optimizer, the learning rate and counts, ppdet finds mistakes late or
never.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import paddle
import yaml
from ppdet.optimizer import optimizer as ppdet_schedules

from slim_det.core.errors import ConfigError, nearest
from slim_det.core.safe_yaml import data_sets
from slim_det.core.schema import check_keys, whole_number
from slim_det.training.config_sections import read_optimizer, read_rate, read_reader
from slim_det.training.transform_checks import TRANSFORMS, check_transform

# Key at the top level -> smallest value.
_NUMBERS = {"epoch": 1, "snapshot_epoch": 1, "log_iter": 1, "worker_num": 0, "num_classes": 1}

# Key at the top level that leaves out or changes parts of a model -> what is expected instead.
_FORMS = {
    "exclude_nms": "false: models are measured and exported with their boxes",
    "exclude_post_process": "false: models are measured and exported with their boxes",
    "export_onnx": "false: models are exported for Paddle Inference and Paddle-Lite",
    "export_eb": "false: models are exported for Paddle Inference and Paddle-Lite",
}

# Arguments that ppdet gives to every optimizer itself.
_GIVEN = {"learning_rate", "parameters", "grad_clip"}

# What looks like a number but is text in YAML: in quotes, or an exponent without a point or sign.
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.IGNORECASE)

# Keys with names of files and folders, which may look like a number.
_NAMES = frozenset(
    """
    anno_path cache_root dataset_dir filename image_dir label_list name output_eval pretrain_weights
    save_dir vdl_log_dir weights widerface_ground_truth
    """.split()
)

# Keys of OptimizerBuilder.optimizer that ppdet removes before it calls the class.
_OWN_KEYS = ("type", "param_groups")

_OPTIMIZERS = {
    name: kind
    for name, kind in vars(paddle.optimizer).items()
    if isinstance(kind, type) and issubclass(kind, paddle.optimizer.Optimizer)
}
_SCHEDULES = {
    name: kind for name, kind in vars(ppdet_schedules).items() if name.endswith(("Decay", "Warmup"))
}


def check_parts(cfg: Mapping[str, Any]) -> None:
    """Check readers, optimizer, schedules, counts and forms of a merged configuration.

    Raises:
        ConfigError: A name or key is unknown, a number is not valid, or a form of the model is not
            supported.
    """
    for key, least in _NUMBERS.items():
        whole_number(key, cfg.get(key, least), least)
    for where, text in _numbers_as_text("", cfg):
        _refuse_text(where, text, int(text) if text.isdecimal() else float(text))
    for key, expected in _FORMS.items():
        if cfg.get(key, False) is not False:
            raise ConfigError(f"{key}: {cfg[key]!r} is not supported; expected {expected}")
    known = data_sets()
    for name in ("TrainDataset", "EvalDataset", "TestDataset"):
        settings = cfg.get(name)
        if isinstance(settings, Mapping) and settings.get("name") in known:
            others = {key: value for key, value in settings.items() if key != "name"}
            _check_call(name, settings["name"], others, known)
    for name in ("TrainReader", "EvalReader", "TestReader"):
        _check_reader(name, cfg.get(name) or {})
    optimizer = read_optimizer(cfg.get("OptimizerBuilder") or {}).optimizer
    if optimizer.get("type", "AdamWDL") != "AdamWDL":  # ppdet's own, no class of paddle
        settings = {key: value for key, value in optimizer.items() if key not in _OWN_KEYS}
        _check_call("OptimizerBuilder.optimizer", optimizer["type"], settings, _OPTIMIZERS)
    schedules = read_rate(cfg.get("LearningRate") or {}).schedulers or []
    for place, schedule in enumerate(schedules):
        if isinstance(schedule, Mapping):
            _check_schedule(place, schedule)
        elif schedule is None or isinstance(schedule, (str, int, float, list)):
            raise ConfigError(
                f"LearningRate.schedulers: {schedule!r} is not valid; expected a schedule such as "
                "{name: CosineDecay}"
            )
    if len(schedules) == 1:
        _check_alone(schedules[0])


def _check_reader(name: str, values: Any) -> None:
    reader = read_reader(name, values)
    for key in ("sample_transforms", "batch_transforms"):
        for step in getattr(reader, key) or []:
            for kind, settings in step.items():
                _check_call(f"{name}.{key}", kind, settings, TRANSFORMS)
                check_transform(f"{name}.{key}", kind, settings, name == "TrainReader")


def _numbers_as_text(where: str, value: Any) -> Iterator[tuple[str, str]]:
    """Every number that a configuration holds as text, with its key."""
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        yield where, value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            if key not in _NAMES:
                yield from _numbers_as_text(f"{where}.{key}" if where else str(key), part)
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from _numbers_as_text(f"{where}[{index}]", part)
    elif isinstance(value, tuple(_SCHEDULES.values())):  # built by a tag, such as !LinearWarmup
        yield from _numbers_as_text(f"{where}.{type(value).__name__}", vars(value))


def _check_alone(schedule: Any) -> None:
    """Refuse a decay that needs a warmup after it and has none."""
    if isinstance(schedule, Mapping):
        name, warms_up = schedule["name"], schedule.get("use_warmup", True)
    else:
        name, warms_up = type(schedule).__name__, getattr(schedule, "use_warmup", False)
    if warms_up:
        raise ConfigError(
            f"LearningRate.schedulers: nothing comes after '{name}'; expected a LinearWarmup, or "
            "use_warmup: false"
        )


def _check_schedule(place: int, schedule: Mapping[str, Any]) -> None:
    where, name = "LearningRate.schedulers", str(schedule.get("name"))
    settings = {key: value for key, value in schedule.items() if key != "name"}
    _check_call(where, name, settings, _SCHEDULES)
    if place == 0 and name.endswith("Warmup"):
        raise ConfigError(f"{where}: '{name}' comes first; expected a decay before it")


def _check_call(where: str, name: str, settings: Any, known: Mapping[str, type]) -> None:
    """Check that a class exists, takes the given keys, needs no other, and gets its numbers."""
    if name not in known:
        raise ConfigError(f"{where}: unknown name '{name}'{nearest(name, known)}")
    parameters = inspect.signature(known[name]).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    check_keys(settings, settings if takes_any else parameters.keys() - _GIVEN, f"{where}: {name}")
    for key, parameter in parameters.items():
        value, default = settings.get(key), parameter.default
        is_needed = default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        if is_needed and key not in {*settings, *_GIVEN}:
            raise ConfigError(f"{where}: {name}.{key} is missing")
        if isinstance(value, str) and type(default) in (int, float):
            _refuse_text(f"{where}: {name}.{key}", value, default)


def _refuse_text(where: str, text: str, number: float) -> NoReturn:
    shown = yaml.safe_dump(number).split()[0]
    raise ConfigError(f"{where}: {text!r} is text; expected a number, such as {shown}")
