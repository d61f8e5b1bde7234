"""The strategies `QAT` and `PTQ`: int8 detectors, trained as such or calibrated afterwards."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import paddle

from slim_det.compress.images import calibration_images
from slim_det.compress.quantize.from_images import quantize_from_images
from slim_det.compress.quantize.model import quantize_model
from slim_det.compress.quantize.observers import PtqOptions
from slim_det.compress.quantize.ptq import run_ptq
from slim_det.compress.quantize.record import QuantRecord, record_of
from slim_det.compress.quantize.schedule import QuantSchedule
from slim_det.compress.quantize.settings import QuantSettings, read_quant_config
from slim_det.compress.steps import attach_step
from slim_det.compress.strategy import Context, Strategy
from slim_det.core.errors import ConfigError, QuantError, nearest
from slim_det.core.schema import check_keys, whole_number

logger = logging.getLogger("slim_det")

CALIBRATION_IMAGES = 16

# PaddleSlim's class -> our observer.
_OBSERVERS = {"KLQuantizer": "kl", "HistQuantizer": "hist", "AbsmaxQuantizer": "abs_max"}
_WEIGHT_TYPES = {
    "PerChannelAbsmaxQuantizer": "channel_wise_abs_max",
    "AbsmaxQuantizer": "abs_max",
}
# They size PaddleSlim's histograms; ours count exactly.
_WITHOUT_EFFECT = {"upsample_bins", "bins"}


class _Quantization(Strategy):
    """Common base of both strategies, which have the same step."""

    step = QuantRecord
    hooks = (QuantSchedule,)
    comes_after = ("Pruner", "Distill")

    @classmethod
    def restore(cls, model: paddle.nn.Layer, step: QuantRecord) -> None:
        """Quantize a freshly built model; its ranges are loaded with the weights."""
        quantize_model(model, step)


class QAT(_Quantization):
    """Trains a detector while its convolutions simulate their int8 kernels.

    Args:
        quant_config: Types and bits (see `slim_det.compress.quantize.settings.read_quant_config`).
        print_model: Log the model before and after.
        calibration_images: Number of training images for the initial ranges.
        freeze_epoch: First epoch, from 0, with frozen ranges; None for never.
        freeze_bn_epoch: First epoch in which batch norms use and keep their running statistics,
            as deployed; 0 for the entire training, None for never.

    Raises:
        ConfigError: A setting is wrong.
    """

    only_in_training = True

    def __init__(
        self,
        quant_config: Mapping[str, Any] | None = None,
        print_model: bool = False,
        calibration_images: int = CALIBRATION_IMAGES,
        freeze_epoch: int | None = None,
        freeze_bn_epoch: int | None = None,
    ) -> None:
        self.settings = read_quant_config(quant_config, "QAT")
        self.print_model = print_model
        self.calibration_images = whole_number("QAT.calibration_images", calibration_images, 1)
        self.schedule = {
            key: None if epoch is None else whole_number(f"QAT.{key}", epoch, 0)
            for key, epoch in (("freeze_epoch", freeze_epoch), ("freeze_bn_epoch", freeze_bn_epoch))
        }

    @property
    def observer(self) -> str:
        """Observer of the initial ranges; a learned range clips nothing at first."""
        return "abs_max" if self.settings.activation_preprocess else "moving_average"

    def __call__(self, model: paddle.nn.Layer, context: Context) -> paddle.nn.Layer:
        """Calibrate a float model and quantize it in place.

        Raises:
            ConfigError: A name to skip matches nothing.
            DataError: There are too few training images.
            QuantError: The model is quantized already, or nothing is left to quantize.
        """
        if record_of(model) is not None:
            raise QuantError("the model is quantized already; start from float weights")
        if self.print_model:
            logger.info("model before quantization:\n%s", str(model))
        _, images = calibration_images(self.calibration_images, "QAT.calibration_images")
        origin = {
            "method": "aware",
            "observer": self.observer,
            "images": len(images),
            **self.schedule,
        }
        record, _ = quantize_from_images(
            model, context.cfg, context.image_size_hw, self.settings, images, origin
        )
        if self.print_model:
            logger.info("quantized model:\n%s", str(model))
        logger.info(
            "%d layers simulate int8 (calibration images: %d)", len(record.layers), len(images)
        )
        for line in kept_float_lines(record.kept_float):
            logger.info("%s", line)
        return model

    def adopt(self, model: paddle.nn.Layer, step: QuantRecord, context: Context) -> None:
        """Use the ranges of the weights, with these settings of when ranges and norms freeze.

        Raises:
            QuantError: The weights are quantized with other settings.
        """
        differing = settings_that_differ(step.settings, self.settings)
        if differing:
            raise QuantError(
                f"'{context.weights}' are quantized otherwise than {context.asked_by} asks for: "
                f"{differing[0]}; leave --slim_config out, or start from float weights"
            )
        origin = {**step.origin, "method": "aware", **self.schedule}
        attach_step(model, replace(step, origin=origin))
        logger.info(
            "'%s' are already quantized as %s asks; their ranges are used",
            context.weights,
            context.asked_by,
        )

    @classmethod
    def check_weights(cls, model: paddle.nn.Layer, context: Context) -> None:
        """Check that float weights are only used to start a training.

        Raises:
            QuantError: They are to be resumed, evaluated or exported.
        """
        super().check_weights(model, context)
        weights, asked_by = context.weights, context.asked_by
        if context.purpose == "resume":
            raise QuantError(
                f"'{weights}' is of a float training and {asked_by} asks for QAT, so it cannot be "
                f"resumed; expected -o pretrain_weights={weights} instead of -r"
            )
        if not context.is_training:
            raise QuantError(
                f"'{weights}' are float weights and {asked_by} asks for QAT; expected weights "
                f"that `slim-det train --slim_config {asked_by}` has left, or `slim-det quantize`"
            )


class PTQ(_Quantization):
    """Calibrates a trained detector, when `slim-det quantize` or PaddleDetection's script asks.

    Args:
        ptq_config: PaddleSlim's keys: ``activation_quantizer`` (`KLQuantizer`, `HistQuantizer`,
            `AbsmaxQuantizer`), ``weight_quantizer`` (`PerChannelAbsmaxQuantizer`,
            `AbsmaxQuantizer`), ``hist_percent``.
        quant_batch_num: Calibration batches, of the size of ``EvalReader``.
        quant_config: Types and bits, as of `QAT`.
        observer: One of `slim_det.compress.quantize.observers.OBSERVERS`; wins over ``ptq_config``.
        images: Calibration images; wins over ``quant_batch_num``.
        percent: Share of the values that the observer ``hist`` keeps; wins over ``ptq_config``.
        bias_correction: Remove the mean error of every channel.

    Raises:
        ConfigError: A setting is wrong.
    """

    excludes = {
        "QAT": "one trains the int8 model, the other calibrates it; leave one out",
        "Distill": "'PTQ' does not train; distil first, then quantize those weights",
    }
    waits = True

    def __init__(
        self,
        ptq_config: Mapping[str, Any] | None = None,
        quant_batch_num: int = 10,
        quant_config: Mapping[str, Any] | None = None,
        observer: str | None = None,
        images: int | None = None,
        percent: float | None = None,
        bias_correction: bool = False,
    ) -> None:
        historical = _read_ptq_config(ptq_config)
        weight_type = historical.pop("weight_type", None)
        self.settings: QuantSettings = read_quant_config(quant_config, "PTQ")
        if weight_type and "weight_quantize_type" not in (quant_config or {}):
            self.settings = replace(self.settings, weight_type=weight_type)
        if self.settings.activation_preprocess or self.settings.weight_preprocess:
            raise ConfigError(
                "PTQ.quant_config: a range is learned in training only; leave "
                "activation_preprocess_type and weight_preprocess_type out, or take QAT"
            )
        own = {"observer": observer, "percent": percent, "images": images}
        self._options = {
            **historical,
            **{key: value for key, value in own.items() if value is not None},
            "bias_correction": bias_correction,
        }
        self._batches = whole_number("PTQ.quant_batch_num", quant_batch_num, 1)
        self.options(batch_size=1)

    def options(self, batch_size: int) -> PtqOptions:
        """How ranges are found, with ``batch_size`` images in a batch of ``EvalReader``."""
        options = PtqOptions(**{"images": self._batches * batch_size, **self._options})
        options.check("PTQ.")
        return options

    def __call__(self, model: paddle.nn.Layer, context: Context) -> paddle.nn.Layer:
        """Calibrate and quantize a float model in place (see `run_ptq`)."""
        batch_size = int(context.cfg["EvalReader"].get("batch_size", 1))
        run_ptq(model, context.cfg, self.settings, self.options(batch_size))
        return model

    @classmethod
    def check_purpose(cls, context: Context) -> None:
        """Raise `ConfigError` if the model is to be trained."""
        if context.is_training:
            raise ConfigError(
                f"{context.asked_by}: slim: 'PTQ' does not train; expected 'QAT', or `slim-det "
                f"quantize --slim_config {context.asked_by}`"
            )

    @classmethod
    def check_weights(cls, model: paddle.nn.Layer, context: Context) -> None:
        """Check that float weights are only used for a calibration.

        Raises:
            QuantError: They are to be evaluated or exported.
        """
        super().check_weights(model, context)
        if context.purpose != "calibrate":
            raise QuantError(
                f"'{context.weights}' are float weights and {context.asked_by} asks for PTQ; "
                f"expected `slim-det quantize --slim_config {context.asked_by}`, and then the "
                "weights that it leaves"
            )


def settings_that_differ(found: QuantSettings, asked: QuantSettings) -> list[str]:
    """Every difference between the settings of weights and those of a slim file, in words."""
    left, right = asdict(found), asdict(asked)
    return [
        f"{key} is {left[key]} in the weights, {right[key]} is asked for"
        for key in left
        if left[key] != right[key]
    ]


def kept_float_lines(kept_float: Mapping[str, str]) -> list[str]:
    """One line for every reason why layers stay in float.

    Args:
        kept_float: Module path -> reason.
    """
    reasons: dict[str, list[str]] = {}
    for name, reason in kept_float.items():
        reasons.setdefault(reason, []).append(name)
    return [
        f"layers in float: {len(names)} ({reason}): {', '.join(names[:4])}"
        + (f", ... ({len(names) - 4} more)" if len(names) > 4 else "")
        for reason, names in reasons.items()
    ]


def _read_ptq_config(config: Any) -> dict[str, Any]:
    """PaddleSlim's keys as ``observer``, ``percent`` and ``weight_type``."""
    if config is None:
        return {}
    known = {"activation_quantizer", "weight_quantizer", "hist_percent", *_WITHOUT_EFFECT}
    check_keys(config, known, "PTQ.ptq_config")
    chosen = {
        "observer": ("activation_quantizer", _OBSERVERS, "KLQuantizer"),
        "weight_type": ("weight_quantizer", _WEIGHT_TYPES, "PerChannelAbsmaxQuantizer"),
    }
    values: dict[str, Any] = {}
    for field, (key, names, default) in chosen.items():
        name = config.get(key, default)
        if not isinstance(name, str) or name not in names:
            raise ConfigError(
                f"PTQ.ptq_config.{key}: unknown quantizer {name!r}{nearest(str(name), names)}"
            )
        values[field] = names[name]
    if "hist_percent" in config:
        values["percent"] = config["hist_percent"]
    return values
