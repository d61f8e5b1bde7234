"""The parts of a configuration whose values ppdet does not check: readers, optimizer, rate."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Optional

from ppdet.data.reader import BaseDataLoader
from pydantic import Field, Strict

from slim_det.core.schema import Count, FiniteNumber, Switch, check_keys, validated

MaybeNumber = Annotated[
    Optional[Annotated[float, Strict(), Field(allow_inf_nan=False)]],
    Field(description="a finite number, or null"),
]
Step = dict[str, Any]
Steps = Annotated[
    Optional[list[Step]],
    Field(description="a list of transforms, each with its settings: [{Decode: {}}]"),
]
MaybeSettings = Annotated[Optional[dict[str, Any]], Field(description="keys and values")]
MaybeSchedules = Annotated[Optional[list[Any]], Field(description="a list of schedules")]

# Keys of a reader that its data set or the export reads; its class takes any key.
_READER_KEYS = {
    *inspect.signature(BaseDataLoader.__init__).parameters.keys() - {"self", "kwargs"},
    *("mixup_epoch", "cutmix_epoch", "mosaic_epoch", "pre_img_epoch"),
    *("inputs_def", "fuse_normalize"),
}
_INPUTS_KEYS = ("image_shape", "num_max_boxes")


@dataclass
class Reader:
    """``TrainReader``, ``EvalReader`` or ``TestReader``."""

    sample_transforms: Steps = None
    batch_transforms: Steps = None
    batch_size: Count = 1
    shuffle: Switch = False
    drop_last: Switch = False
    collate_batch: Switch = False
    use_shared_memory: Switch = False
    fuse_normalize: Switch = False
    inputs_def: MaybeSettings = None


@dataclass
class Optimizer:
    """``OptimizerBuilder``; AdamWDL is ppdet's own optimizer, the others are those of Paddle."""

    clip_grad_by_norm: MaybeNumber = None
    clip_grad_by_value: MaybeNumber = None
    optimizer: Annotated[dict[str, Any], Field(description="keys and values")] = field(
        default_factory=dict
    )


@dataclass
class Regularizer:
    """``OptimizerBuilder.regularizer``."""

    type: Annotated[str, Field(pattern="^L[12]$", description="L1 or L2")]
    factor: FiniteNumber


@dataclass
class Rate:
    """``LearningRate``; a schedule is a mapping, or was built by a tag such as !LinearWarmup."""

    base_lr: FiniteNumber = 1.0
    schedulers: MaybeSchedules = None


def read_reader(name: str, values: Any) -> Reader:
    """Check the keys and the types of a reader.

    Raises:
        ConfigError: A key is unknown, or a value is not of its type.
    """
    check_keys(values, _READER_KEYS, name)
    reader = validated(Reader, values, f"{name}.")
    check_keys(reader.inputs_def or {}, _INPUTS_KEYS, f"{name}.inputs_def")
    return reader


def read_optimizer(values: Any) -> Optimizer:
    """Check the types of ``OptimizerBuilder`` and its regularizer; errors as `read_reader`."""
    where = "OptimizerBuilder"
    check_keys(values, values, where)
    regularizer = values.get("regularizer")
    if regularizer and regularizer != "None":  # what ppdet takes for no regularizer
        check_keys(regularizer, [own.name for own in fields(Regularizer)], f"{where}.regularizer")
        validated(Regularizer, regularizer, f"{where}.regularizer.")
    return validated(Optimizer, values, f"{where}.")


def read_rate(values: Any) -> Rate:
    """Check the types of ``LearningRate``; errors as `read_reader`."""
    check_keys(values, values, "LearningRate")
    return validated(Rate, values, "LearningRate.")
