"""Which convolutions of a model can be quantized, and why others stay in float."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import paddle

from slim_det.compress.quantize.record import QuantLayer, RoundedOutput
from slim_det.compress.quantize.residual_fusion import giving_modules, rounded_tensors
from slim_det.compress.quantize.settings import QuantSettings
from slim_det.core.errors import ConfigError, LayerError, QuantError
from slim_det.detectors.layer_finder import LayerFinder
from slim_det.graph.dygraph import blank_batch, evaluation_mode
from slim_det.graph.layer_names import layer_names
from slim_det.graph.op import Op
from slim_det.graph.operators import OPERATORS, data_of, declared, result_of
from slim_det.graph.program import head_convolutions
from slim_det.graph.trace import Trace

logger = logging.getLogger("slim_det")

SKIPPED_BY_MODEL = "the model's code keeps it in float (raw outputs of the head)"
SKIPPED_AS_HEAD = "boxes are decoded from it (raw outputs of the head)"
SKIPPED_BY_USER = "named in 'skip'"
SHARED = "it runs several times in the model"


@dataclass(frozen=True)
class QuantizableLayers:
    """The convolutions of a model.

    Attributes:
        layers: Those that are quantized, in the order in which they run.
        kept_float: Module path -> why that layer is not.
        rounded: Outputs of modules that additions read as integers; only for a detector.
    """

    layers: list[QuantLayer]
    kept_float: dict[str, str]
    rounded: list[RoundedOutput]


def find_quantizable_layers(
    model: paddle.nn.Layer, trace: Trace, settings: QuantSettings
) -> QuantizableLayers:
    """Decide for every convolution whether it is quantized.

    Args:
        model: A float model.
        trace: Its operators.
        settings: ``skip`` names layers that stay in float.

    Raises:
        ConfigError: A name or glob of ``skip`` matches nothing.
        QuantError: No convolution is left.
    """
    paths = layer_names(model)
    skipped = _skipped(model, settings.skip)
    modules = dict(model.named_sublayers())
    fixed = _kept_by_place(trace)
    tensors: dict[str, str] = {}
    outputs: dict[str, str] = {}
    layers: list[QuantLayer] = []
    kept: dict[str, str] = {}
    weights = [_weight_of(op, trace) for op in trace.ops]
    calls = Counter(weights)
    for op, weight in zip(trace.ops, weights):
        if not weight or weight not in paths:
            continue
        path = paths[weight]
        if path in kept:
            continue
        reason = _reason(op, modules.get(weight.rpartition(".")[0]), weight in skipped, fixed)
        if not reason and calls[weight] > 1:
            reason = SHARED
        if reason:
            kept[path] = reason
            continue
        tensors[path] = data_of(op)
        outputs[result_of(op)] = path
        layers.append(QuantLayer(path, _norm_of(op, trace)))
    if not layers:
        raise QuantError(
            f"nothing to quantize: all {len(kept)} layers stay in float; expected at least one "
            "convolution that 'skip' does not name"
        )
    rounded = rounded_tensors(trace, tensors, outputs)
    return QuantizableLayers(
        _with_inputs(layers, tensors, trace), kept, _rounded_outputs(model, trace, rounded)
    )


def convolution_of(model: paddle.nn.Layer, path: str) -> paddle.nn.Layer:
    """The convolution with a module path of a record.

    Raises:
        LayerError: The model has no such layer.
    """
    module = weighted_modules(model).get(path)
    if module is None:
        raise LayerError(f"the model has no layer '{path}'")
    return module


def weighted_modules(model: paddle.nn.Layer) -> dict[str, paddle.nn.Layer]:
    """Module path of a record -> the layer that holds the weight."""
    modules = dict(model.named_sublayers())
    holders = {path: weight.rpartition(".")[0] for weight, path in layer_names(model).items()}
    return {path: modules[holder] for path, holder in holders.items() if holder in modules}


def _with_inputs(
    layers: list[QuantLayer], tensors: Mapping[str, str], trace: Trace
) -> list[QuantLayer]:
    """The layers with `QuantLayer.shares` and `QuantLayer.unsigned`.

    Maxima and upsampled values have the range and sign of their source if a quantized convolution
    reads that too, since the engine then takes them of its integers.
    """
    resized = {result_of(op): data_of(op) for op in trace.ops if declared(op).keeps_range(op)}
    positive = {result_of(op) for op in trace.ops if declared(op).unsigned}
    read = set(tensors.values())
    found = []
    first: dict[str, str] = {}
    for layer in layers:
        tensor = tensors[layer.name]
        tensor = resized[tensor] if resized.get(tensor) in read else tensor
        owner = first.setdefault(tensor, layer.name)
        shares = "" if owner == layer.name else owner
        found.append(replace(layer, shares=shares, unsigned=tensor in positive))
    return found


def _rounded_outputs(
    model: paddle.nn.Layer, trace: Trace, tensors: Mapping[str, tuple[list[str], list[str]]]
) -> list[RoundedOutput]:
    """The modules of a detector that give tensors which additions read as integers."""
    if not tensors or trace.image_size_hw is None:
        return []
    batch, modules = blank_batch(trace.image_size_hw), weighted_modules(model)
    first = {readers[0]: modules[readers[0]] for readers, _ in tensors.values()}
    with evaluation_mode(model):
        given = giving_modules(model, lambda: model(batch), first)
    found = []
    for readers, producers in tensors.values():
        if readers[0] in given:
            found.append(RoundedOutput(given[readers[0]], readers, producers))
        else:
            logger.warning(
                "the engine adds integers to the input of '%s', the simulation floats: it is not "
                "the output of a module",
                readers[0],
            )
    return found


def _skipped(model: paddle.nn.Layer, names: Iterable[str]) -> set[str]:
    finder = LayerFinder(model)
    found: set[str] = set()
    for name in names:
        try:
            found.update(finder.find(name))
        except LayerError as error:
            raise ConfigError(f"skip: {error}") from error
    return found


def _weight_of(op: Op, trace: Trace) -> str:
    """State-dict name of a layer's weight; '' for an operator without one."""
    for slot in {operator.weight for operator in OPERATORS.values()}:
        name = trace.parameters.get(op.input(slot), "")
        if name.endswith(".weight") and len(trace.shapes[op.input(slot)]) > 1:
            return name
    return ""


def _kept_by_place(trace: Trace) -> dict[str, str]:
    """Output of a convolution -> why its place in the model keeps it in float."""
    head = {result_of(op): SKIPPED_AS_HEAD for op in head_convolutions(trace.ops)}
    placing = "it places the samples of a deformable convolution"
    return {**head, **dict.fromkeys(_placing(trace), placing)}


def _reason(op: Op, module: paddle.nn.Layer | None, skipped: bool, fixed: Mapping[str, str]) -> str:
    """Why a layer stays in float; '' where it is quantized."""
    if skipped:
        return SKIPPED_BY_USER
    if not declared(op).int8_kernel:
        return f"{op.type} has no int8 kernel"
    if getattr(module, "skip_quant", False):
        return SKIPPED_BY_MODEL
    if result_of(op) in fixed:
        return fixed[result_of(op)]
    if module is None or type(module) is not paddle.nn.Conv2D:
        return f"its layer is a {type(module).__name__}, not a Conv2D"
    if module._padding_mode != "zeros":
        return f"it pads with '{module._padding_mode}'"
    return ""


def _placing(trace: Trace) -> set[str]:
    """Outputs of the convolutions that compute offsets and masks of deformable ones."""
    waiting = [op.input(slot) for op in trace.ops for slot in declared(op).sampling]
    seen: set[str] = set()
    found: set[str] = set()
    while waiting:
        name = waiting.pop()
        op = trace.writer(name)
        if name in seen or op is None:
            continue
        seen.add(name)
        if declared(op).int8_kernel:
            found.add(name)
        else:
            waiting.extend(op.input_arg_names)
    return found


def _norm_of(op: Op, trace: Trace) -> str:
    """Module path of a batch norm that is the only reader of a convolution; '' for none."""
    output = result_of(op)
    consumers = trace.readers(output)
    if output in trace.outputs or len(consumers) != 1 or consumers[0].type != "batch_norm":
        return ""
    # A norm without a scale of its own has no such name.
    return trace.parameters.get(consumers[0].input("Scale"), "").rpartition(".")[0]
