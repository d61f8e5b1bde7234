"""Quantizes a model by its record, puts layers back to float, and reads the ranges for engines."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import paddle
from paddle.nn.layer.norm import _BatchNormBase

from slim_det.compress.quantize.layers import (
    QuantConv2D,
    folded_weight,
    quantize_convolution,
    release_convolution,
)
from slim_det.compress.quantize.learned import LearnedClip, LearnedStep, LearnedWeightStep
from slim_det.compress.quantize.quantizable_layers import weighted_modules
from slim_det.compress.quantize.quantizers import (
    AbsMaxWeight,
    FixedRange,
    ObservedRange,
    SharedRange,
)
from slim_det.compress.quantize.record import QuantLayer, QuantRecord, record_of
from slim_det.compress.quantize.residual_fusion import round_outputs
from slim_det.compress.quantize.rounding import MIN_RANGE
from slim_det.compress.quantize.settings import QuantSettings
from slim_det.compress.steps import attach_step
from slim_det.core.errors import QuantError, nearest
from slim_det.graph.integers import LayerRanges
from slim_det.graph.layer_names import layer_names


def quantize_model(
    model: paddle.nn.Layer, record: QuantRecord, ranges: Mapping[str, float] | None = None
) -> None:
    """Quantize a model in place by a record, and attach the record.

    Args:
        model: A float model.
        record: What to quantize.
        ranges: Module path -> range of the layer's input, from a calibration; by default 1, until
            weights are loaded.

    Raises:
        QuantError: The model is quantized already, or the record belongs to another model.
    """
    if record_of(model) is not None:
        raise QuantError("the model is quantized already; start from float weights")
    weighted, modules = weighted_modules(model), dict(model.named_sublayers())
    found = [_find(layer, weighted, modules) for layer in record.layers]
    quantizers: dict[str, paddle.nn.Layer] = {}
    for layer, (module, norm) in zip(record.layers, found):
        if layer.shares:
            activation: paddle.nn.Layer = SharedRange(quantizers[layer.shares])
        else:
            start = max((ranges or {}).get(layer.name, 1.0), MIN_RANGE)
            activation = _activation(record.settings, layer, module, start)
            quantizers[layer.name] = activation
        quantize_convolution(module, activation, _weight_quantizer(record, module, norm), norm)
        module.activation.training = module.weights.training = module.training
    _round_outputs(record, weighted, modules)
    attach_step(model, record)


def keep_float(model: paddle.nn.Layer, names: Iterable[str], reason: str) -> None:
    """Put layers of a quantized model back to float, and update its record.

    Args:
        model: A quantized model.
        names: Module paths of quantized convolutions.
        reason: For the record.
    """
    record = _required_record(model)
    back = set(names)
    known = [layer.name for layer in record.layers]
    for name in back:
        if name not in known:
            raise QuantError(f"'{name}' is not a quantized layer{nearest(name, known)}")
    left = _without(record.layers, back)
    layers = quantized_layers(model)
    shared = {layer.name: layer.shares for layer in record.layers}
    ranges = {name: layer.activation for name, layer in layers.items()}
    for name in back:
        release_convolution(layers[name])
    for layer in left:
        if shared[layer.name] and not layer.shares:
            layers[layer.name].activation = ranges[shared[layer.name]]
        elif layer.shares != shared[layer.name]:
            layers[layer.name].activation = SharedRange(ranges[shared[layer.name]])
    kept = {**record.kept_float, **{name: reason for name in back}}
    attach_step(model, replace(record, layers=left, kept_float=kept))


def quantized_layers(model: paddle.nn.Layer) -> dict[str, QuantConv2D]:
    """Module path -> convolution, of every quantized layer in the order of the record."""
    record = record_of(model)
    if record is None:
        return {}
    modules = weighted_modules(model)
    return {layer.name: modules[layer.name] for layer in record.layers}


@contextlib.contextmanager
def signed_inputs(model: paddle.nn.Layer) -> Iterator[None]:
    """Inside the context, every input is rounded to signed integers, as in Paddle-Lite."""
    record = _required_record(model)
    layers = list(quantized_layers(model).values())
    before = [layer.activation for layer in layers]
    try:
        for layer in layers:
            layer.activation = FixedRange(layer.activation.range(), record.settings.activation_bits)
        yield
    finally:
        for layer, activation in zip(layers, before):
            layer.activation = activation


def ranges_of(model: paddle.nn.Layer) -> dict[str, LayerRanges]:
    """The ranges and bits of the layers of a quantized model.

    Returns:
        State-dict name of a convolution's weight -> its ranges.

    Raises:
        QuantError: A range is missing, not finite or not positive.
    """
    record = _required_record(model)
    names = {path: weight for weight, path in layer_names(model).items()}
    found = {}
    for path, layer in quantized_layers(model).items():
        ranges = LayerRanges(
            input_range=layer.activation.range(),
            weight_ranges=layer.weight_ranges(),
            weight_bits=record.settings.weight_bits,
            activation_bits=record.settings.activation_bits,
        )
        if not ranges.is_usable:
            raise QuantError(
                f"'{path}' has lost its scales (input range {ranges.input_range:g}); expected "
                "positive numbers: quantize again"
            )
        found[names[path]] = ranges
    return found


def program_ranges(model: paddle.nn.Layer) -> dict[str, LayerRanges]:
    """The same by the names of the weights in a program.

    Raises:
        QuantError: The model is not quantized, or a layer of its record has no range.
    """
    for path, layer in quantized_layers(model).items():
        if not isinstance(layer, QuantConv2D):
            raise QuantError(
                f"'{path}' is quantized in the record and has no scales: quantize again"
            )
    parameters = dict(model.named_parameters())
    return {parameters[name].name: ranges for name, ranges in ranges_of(model).items()}


def _required_record(model: paddle.nn.Layer) -> QuantRecord:
    record = record_of(model)
    if record is None:
        raise QuantError("the model is not quantized")
    return record


def _find(
    layer: QuantLayer,
    weighted: Mapping[str, paddle.nn.Layer],
    modules: Mapping[str, paddle.nn.Layer],
) -> tuple[paddle.nn.Conv2D, paddle.nn.Layer | None]:
    """The convolution and the batch norm of an entry of a record."""
    module = weighted.get(layer.name)
    norm = modules.get(layer.norm) if layer.norm else None
    if type(module) is not paddle.nn.Conv2D or (
        layer.norm and not isinstance(norm, _BatchNormBase)
    ):
        raise QuantError(
            f"the quantization record belongs to another model: it has no convolution "
            f"'{layer.name}'" + (f" with batch norm '{layer.norm}'" if layer.norm else "")
        )
    return module, norm


def _round_outputs(
    record: QuantRecord,
    weighted: Mapping[str, paddle.nn.Layer],
    modules: Mapping[str, paddle.nn.Layer],
) -> None:
    for one in record.rounded:
        unknown = [name for name in (*one.readers, *one.producers) if name not in weighted]
        if unknown or one.module not in modules:
            raise QuantError(
                "the quantization record belongs to another model: it has no "
                f"'{(unknown or [one.module])[0]}'"
            )
    round_outputs(modules, weighted, record.rounded)


def _without(layers: list[QuantLayer], back: set[str]) -> list[QuantLayer]:
    """The other layers; the first that shared a range of ``back`` becomes its owner."""
    heirs: dict[str, str] = {}
    left = []
    for layer in layers:
        if layer.name in back:
            continue
        shares = layer.shares
        if shares in back:
            shares = heirs.get(layer.shares, "")
            heirs.setdefault(layer.shares, layer.name)
        left.append(replace(layer, shares=shares))
    return left


def _activation(
    settings: QuantSettings, layer: QuantLayer, module: paddle.nn.Conv2D, start: float
) -> paddle.nn.Layer:
    name = f"{module.weight.name}.input_range"
    bits = settings.input_bits(layer.unsigned)
    if settings.activation_preprocess:
        learned = {"PACT": LearnedClip, "LSQ": LearnedStep}[settings.activation_preprocess]
        return learned(name, start, bits)
    per_batch = settings.activation_type == "abs_max"
    return ObservedRange(name, start, bits, settings.moving_rate, per_batch)


def _weight_quantizer(
    record: QuantRecord, module: paddle.nn.Conv2D, norm: paddle.nn.Layer | None
) -> paddle.nn.Layer:
    """The quantizer of a weight; a learned range starts from the present weight."""
    settings = record.settings
    per_channel = settings.weight_type == "channel_wise_abs_max"
    observed = AbsMaxWeight(settings.weight_bits, per_channel)
    if not settings.weight_preprocess:
        return observed
    start = observed.ranges(folded_weight(module, None if per_channel else norm))
    name = f"{module.weight.name}.weight_step"
    return LearnedWeightStep(name, start, settings.weight_bits, per_channel)
