"""The `QAT` and `PTQ` of a slim file: int8 detectors, trained as such or calibrated afterwards."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import paddle

from slim_det.compress.quantize.model import quantize_model
from slim_det.compress.quantize.quantizable_layers import find_quantizable_layers
from slim_det.compress.quantize.record import QuantRecord, record_of
from slim_det.compress.quantize.settings import QuantSettings, read_quant_config
from slim_det.core.errors import ConfigError, QuantError, nearest
from slim_det.graph.trace import trace_detector

if TYPE_CHECKING:
    from slim_det.compress.quantize.ptq import PostOptions

logger = logging.getLogger("slim_det")

CALIBRATION_IMAGES = 16

_PENDING = "slim_post_quantizer"

# PaddleSlim's class -> our observer. It takes KLQuantizer where none is named.
_OBSERVERS = {"KLQuantizer": "kl", "HistQuantizer": "hist", "AbsmaxQuantizer": "abs_max"}
_WEIGHT_TYPES = {
    "PerChannelAbsmaxQuantizer": "channel_wise_abs_max",
    "AbsmaxQuantizer": "abs_max",
}
# They size PaddleSlim's histograms; ours count exactly.
_WITHOUT_EFFECT = {"upsample_bins", "bins"}


class QAT:
    """Trains a detector while its convolutions simulate their int8 kernels.

    Args:
        quant_config: Types and bits (see `slim_det.compress.quantize.settings.read_quant_config`).
        print_model: Log the model before and after.
        calibration_images: Training images that ranges start from.
        freeze_epoch: First epoch, from 0, in which ranges move no more; None for never.
        freeze_bn_epoch: First epoch in which batch norms use and keep their running statistics,
            as deployed; 0 for the whole training, None for never.

    Raises:
        ConfigError: A setting is wrong.
    """

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
        self.calibration_images = _whole("QAT.calibration_images", calibration_images, 1)
        self.schedule = {
            key: None if epoch is None else _whole(f"QAT.{key}", epoch, 0)
            for key, epoch in (("freeze_epoch", freeze_epoch), ("freeze_bn_epoch", freeze_bn_epoch))
        }

    @property
    def observer(self) -> str:
        """What the ranges start from; a range that is learned clips nothing at first."""
        return "abs_max" if self.settings.activation_preprocess else "moving_average"

    def __call__(self, model: paddle.nn.Layer, image_size_hw: tuple[int, int]) -> paddle.nn.Layer:
        """Calibrate a float model and quantize it in place; it stays the model it was.

        Args:
            model: With the weights that training starts from.
            image_size_hw: At which it is deployed, in pixels.

        Returns:
            ``model``.

        Raises:
            ConfigError: A name to skip matches nothing.
            DataError: There are fewer training images than asked for.
            QuantError: The model is quantized already, or nothing is left to quantize.
        """
        # Not above: importing ppdet registers this class.
        from ppdet.core.workspace import global_config

        from slim_det.compress.quantize.calibrate import calibration_images, collect
        from slim_det.compress.quantize.observers import input_range

        if record_of(model) is not None:
            raise QuantError("the model is quantized already; start from float weights")
        if self.print_model:
            logger.info("model before quantization:\n%s", str(model))
        images = calibration_images(global_config, self.calibration_images)
        quantizable = find_quantizable_layers(
            model, trace_detector(model, image_size_hw), self.settings
        )
        statistics = collect(model, quantizable.layers, global_config, images)
        bits = {
            layer.name: self.settings.input_bits(layer.unsigned) for layer in quantizable.layers
        }
        ranges = {n: input_range(self.observer, s, bits[n]) for n, s in statistics.items()}
        origin = {
            "method": "aware",
            "observer": self.observer,
            "images": len(images),
            **self.schedule,
        }
        quantize_model(
            model,
            QuantRecord(
                self.settings,
                quantizable.layers,
                quantizable.kept_float,
                origin,
                quantizable.rounded,
            ),
            ranges,
        )
        if self.print_model:
            logger.info("quantized model:\n%s", str(model))
        logger.info(
            "%d layers simulate int8 (calibration images: %d)", len(quantizable.layers), len(images)
        )
        for line in kept_float_lines(quantizable.kept_float):
            logger.info("%s", line)
        return model


class PTQ:
    """Says how a trained detector is calibrated; `slim-det quantize` does it.

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
        types = {"weight_quantize_type": weight_type} if weight_type else {}
        self.settings: QuantSettings = read_quant_config(
            {**types, **_mapping("PTQ.quant_config", quant_config)}, "PTQ"
        )
        if self.settings.activation_preprocess or self.settings.weight_preprocess:
            raise ConfigError(
                "PTQ.quant_config: a range is learned in training only; leave "
                "activation_preprocess_type and weight_preprocess_type out, or take QAT"
            )
        if not isinstance(bias_correction, bool):
            raise ConfigError(
                f"PTQ.bias_correction: {bias_correction!r} is not valid; expected true or false"
            )
        own = {"observer": observer, "percent": percent, "images": images}
        self._options = {
            **historical,
            **{key: value for key, value in own.items() if value is not None},
            "bias_correction": bias_correction,
        }
        self._batches = _whole("PTQ.quant_batch_num", quant_batch_num, 1)
        self.options(batch_size=1)

    def options(self, batch_size: int) -> PostOptions:
        """How ranges are found.

        Args:
            batch_size: Images in a batch of ``EvalReader``.
        """
        # Not above: importing ppdet registers this class.
        from slim_det.compress.quantize.ptq import PostOptions

        options = PostOptions(**{"images": self._batches * batch_size, **self._options})
        options.check("PTQ.")
        return options

    def __call__(self, model: paddle.nn.Layer, image_size_hw: tuple[int, int]) -> paddle.nn.Layer:
        """Remember on a float model how it is to be calibrated (see `post_quantizer_of`)."""
        object.__setattr__(model, _PENDING, self)
        return model


def post_quantizer_of(model: paddle.nn.Layer) -> PTQ | None:
    """How a float model is to be calibrated; None where no slim file says so."""
    return getattr(model, _PENDING, None)


def settings_that_differ(found: QuantSettings, asked: QuantSettings) -> list[str]:
    """Every setting in which weights differ from what is asked for, in words."""
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
    found = _mapping("PTQ.ptq_config", config)
    known = {"activation_quantizer", "weight_quantizer", "hist_percent", *_WITHOUT_EFFECT}
    for key in found:
        if key not in known:
            raise ConfigError(f"PTQ.ptq_config: unknown key '{key}'{nearest(key, sorted(known))}")
    chosen = {
        "observer": ("activation_quantizer", _OBSERVERS, "KLQuantizer"),
        "weight_type": ("weight_quantizer", _WEIGHT_TYPES, "PerChannelAbsmaxQuantizer"),
    }
    values: dict[str, Any] = {}
    for field, (key, names, default) in chosen.items():
        name = found.get(key, default)
        if not isinstance(name, str) or name not in names:
            raise ConfigError(
                f"PTQ.ptq_config.{key}: unknown quantizer {name!r}{nearest(str(name), names)}"
            )
        values[field] = names[name]
    if "hist_percent" in found:
        values["percent"] = found["hist_percent"]
    return values


def _mapping(where: str, value: Any) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}: expected a mapping of keys, found {value!r}")
    return value


def _whole(where: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{where}: {value!r} is not valid; expected a whole number >= {least}")
    return value
