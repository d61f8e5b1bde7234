"""Builds Paddle programs of the format that deployment tools read (`.pdmodel`).

ppdet's NMS can only be traced into this older format, and Paddle-Lite reads no other, but in
Paddle 3.3 some functions (`paddle.multiply`, `F.sigmoid`, ...) can no longer be traced into it.
While a program is built, functions of `stand_ins` take their places.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import paddle
from paddle.jit import dy2static
from paddle.jit.dy2static import convert_call_func
from paddle.jit.dy2static.program_translator import ProgramTranslator
from paddle.pir_utils import OldIrGuard
from paddle.static import InputSpec, Variable
from paddle.utils import unique_name

from slim_det.graph.conversion_cache import methods_rewritten_once
from slim_det.graph.stand_ins import FUNCTIONS, stand_in_for


@contextlib.contextmanager
def deployment_program(layer: paddle.nn.Layer | None = None) -> Iterator[None]:
    """While active, `paddle.jit` traces and saves the `.pdmodel` format.

    Args:
        layer: What is traced, if anything. In its code, an ``if`` on a parameter of its own takes
            the branch of the parameter's value, instead of becoming two branches of the program.
            ppdet's detectors of keypoints leave out what a program cannot do.
    """
    modules = (paddle, paddle.tensor, paddle.nn.functional, Variable)
    saved = [
        (module, name, getattr(module, name))
        for module in modules
        for name in FUNCTIONS
        if hasattr(module, name)
    ]
    # Leaving static mode begins a new numbering, in which a layer made later would get a parameter
    # name that is taken; so the previous numbering is restored.
    numbering = unique_name.switch()
    # A failed trace leaves Paddle's notes of its parameters behind, and a later program may get
    # its id, under which they are kept.
    recorded: dict[int, Any] = ProgramTranslator.get_instance()._params_recorder.params_dict
    before = set(recorded)
    try:
        for module, name, original in saved:
            setattr(module, name, stand_in_for(name, original))
        with methods_rewritten_once(), _decided(layer), _for_deployment(layer), OldIrGuard():
            yield
    finally:
        for module, name, original in saved:
            setattr(module, name, original)
        unique_name.switch(*numbering)
        for program in set(recorded) - before:
            del recorded[program]


@contextlib.contextmanager
def _decided(layer: paddle.nn.Layer | None) -> Iterator[None]:
    """Decide conditions on a layer's parameters by their values, and unroll loops of known length.

    ppdet's two-stage detectors loop over the images of a batch.
    """
    parameters = {} if layer is None else {param.name: param for param in layer.parameters()}
    original_if, original_range = dy2static.IfElse, convert_call_func.convert_range

    def if_else(condition: Any, *branches: Any, **names: Any) -> Any:
        known = parameters.get(getattr(condition, "name", None))
        return original_if(condition if known is None else bool(known.numpy()), *branches, **names)

    def counted(*limits: Any) -> Any:
        known = [known_sizes(one) if isinstance(one, Variable) else [one] for one in limits]
        if all(len(sizes) == 1 for sizes in known):
            return range(*(size for sizes in known for size in sizes))
        return original_range(*limits)

    dy2static.IfElse, convert_call_func.convert_range = if_else, counted
    try:
        yield
    finally:
        dy2static.IfElse, convert_call_func.convert_range = original_if, original_range


@contextlib.contextmanager
def _for_deployment(layer: paddle.nn.Layer | None) -> Iterator[None]:
    """Set the attribute with which ppdet's exporter leaves out a second pass in NumPy."""
    if layer is None or not hasattr(layer, "deploy"):
        yield
        return
    before = layer.deploy
    layer.deploy = True
    try:
        yield
    finally:
        layer.deploy = before


def known_sizes(variable: Variable) -> list[int]:
    """What a variable holds if it is, or was cut from, the shape of another; [] if not known."""
    writers = [op for op in variable.block.ops if variable.name in op.output_arg_names]
    if not writers or writers[-1].type not in ("shape", "slice"):
        return []
    op = writers[-1]
    source = variable.block.var(op.input("Input")[0])
    if op.type == "shape":
        sizes = list(source.shape)
    else:
        given = op.input("StartsTensorList") or op.input("EndsTensorList")
        sizes = [] if given else known_sizes(source)
        if sizes:  # of a shape, so there is one axis
            sizes = sizes[op.attr("starts")[0] : op.attr("ends")[0]]
    return sizes if min(sizes, default=-1) >= 0 else []


def detector_spec(image_size_hw: tuple[int, int], batch: int | None = None) -> dict[str, Any]:
    """The input of a ppdet architecture, for tracing; ``batch`` None for any number of images."""
    return {
        "image": InputSpec([batch, 3, *image_size_hw], "float32", "image"),
        "im_shape": InputSpec([batch, 2], "float32", "im_shape"),
        "scale_factor": InputSpec([batch, 2], "float32", "scale_factor"),
    }
