"""Functions that Paddle 3.3 can no longer trace into a `.pdmodel` program, and what stands in.

Paddle generates these functions, and the generated ones know only its newer format. Each entry
says which operator of the older format computes the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import paddle
from paddle.base.data_feeder import convert_dtype
from paddle.base.framework import convert_np_dtype_to_dtype_
from paddle.base.layer_helper import LayerHelper
from paddle.static import Variable

Attributes = Callable[[Mapping[str, Any], Variable], dict[str, Any]]
"""Arguments and first tensor of a call -> attributes of the operator."""


def _as_given(settings: Mapping[str, Any], first: Variable) -> dict[str, Any]:
    """Attributes with the names and values of the arguments."""
    return dict(settings)


@dataclass(frozen=True)
class StandIn:
    """The operator of a function.

    Attributes:
        op_type: Its type.
        slots: Argument of the function -> input slot of the operator, for each tensor.
        settings: The other arguments, in order, with their defaults.
        attributes: Makes the operator's attributes.
        result: Output slot.
        only_numbers: It stands in only where the first argument alone is a tensor.
    """

    op_type: str
    slots: Mapping[str, str]
    settings: Mapping[str, Any] = field(default_factory=dict)
    attributes: Attributes = _as_given
    result: str = "Out"
    only_numbers: bool = False

    def append(self, *args: Any, **kwargs: Any) -> Variable:
        """Append the operator to the current program; arguments as those of the function."""
        names = [*self.slots, *self.settings, "name"]
        given = {**dict(zip(names, args)), **kwargs}
        if len(args) > len(names) or not given.keys() <= set(names):
            raise TypeError(f"{self.op_type}: these arguments cannot be traced for deployment")
        tensors = {slot: given[name] for name, slot in self.slots.items()}
        first = next(iter(tensors.values()))
        settings = {**self.settings, **{k: v for k, v in given.items() if k in self.settings}}
        helper = LayerHelper(self.op_type)
        out = helper.create_variable_for_type_inference(first.dtype)
        helper.append_op(
            type=self.op_type,
            inputs=tensors,
            outputs={self.result: out},
            attrs=self.attributes(settings, first),
        )
        return out


def stand_in_for(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    """A function that appends the operator for variables of a program, else calls the original."""
    stand_in = FUNCTIONS[name]

    def function(*args: Any, **kwargs: Any) -> Any:
        first, *others = (isinstance(value, Variable) for value in (*args, *kwargs.values()))
        wanted = first and not any(others) if stand_in.only_numbers else first or any(others)
        return (stand_in.append if wanted else original)(*args, **kwargs)

    # Otherwise Paddle would rewrite its source again at every call that it finds in a model's code.
    return paddle.jit.not_to_static(function)


def _axes(axis: Any) -> list[int]:
    return [] if axis is None else [axis] if isinstance(axis, int) else list(axis)


def _reduced(settings: Mapping[str, Any], first: Variable) -> dict[str, Any]:
    axes = _axes(settings["axis"])
    every = list(range(len(first.shape)))
    return {"dim": axes or every, "keep_dim": settings["keepdim"], "reduce_all": not axes}


def _summed(settings: Mapping[str, Any], first: Variable) -> dict[str, Any]:
    dtype = settings["dtype"]
    if dtype is None and convert_dtype(first.dtype) in ("bool", "int32"):
        dtype = "int64"
    types = {} if dtype is None else {"in_dtype": first.dtype, "out_dtype": _dtype(dtype)}
    return {**_reduced(settings, first), **types}


def _extreme(settings: Mapping[str, Any], first: Variable) -> dict[str, Any]:
    axis = settings["axis"]
    return {
        "axis": -1 if axis is None else axis,
        "flatten": axis is None,
        "keepdims": settings["keepdim"],
        "dtype": _dtype(settings["dtype"]),
    }


def _logsumexp(settings: Mapping[str, Any], first: Variable) -> dict[str, Any]:
    axes = _axes(settings["axis"])
    return {"axis": axes or [0], "keepdim": settings["keepdim"], "reduce_all": not axes}


def _rolled(settings: Mapping[str, Any], first: Variable) -> dict[str, Any]:
    return {"shifts": _axes(settings["shifts"]), "axis": _axes(settings["axis"])}


def _dtype(name: Any) -> Any:
    return convert_np_dtype_to_dtype_(convert_dtype(name))


def _triangle(lower: bool) -> Attributes:
    return lambda settings, first: {"lower": lower, "diagonal": settings["diagonal"]}


_X, _XY = {"x": "X"}, {"x": "X", "y": "Y"}
_AXIS = {"axis": None, "keepdim": False}
_SAMPLING = {"mode": "bilinear", "padding_mode": "zeros", "align_corners": True}
_SOFTPLUS = {"beta": 1.0, "threshold": 20.0}

_UNARY = """
    abs acos acosh asin atanh ceil cos cosh exp expm1 floor log log10 log1p log2 logical_not round
    rsqrt sigmoid sign sin sinh sqrt tanh
""".split()
_BINARY = {
    "multiply": "elementwise_mul",
    "maximum": "elementwise_max",
    "minimum": "elementwise_min",
    **{name: name for name in "bmm dot greater_than logical_and logical_or logical_xor".split()},
}

FUNCTIONS: dict[str, StandIn] = {
    **{name: StandIn(name, _X) for name in _UNARY},
    **{name: StandIn(f"{name}_v2", _X) for name in ("isfinite", "isinf", "isnan")},
    **{name: StandIn(kind, _XY) for name, kind in _BINARY.items()},
    "softplus": StandIn("softplus", _X, _SOFTPLUS),
    # With a number, Paddle would make a constant without axes, which Paddle-Lite does not read.
    "__pow__": StandIn("pow", _X, {"factor": 1.0}, only_numbers=True),
    "gelu": StandIn("gelu", _X, {"approximate": False}),
    "matmul": StandIn(
        "matmul_v2",
        _XY,
        {"transpose_x": False, "transpose_y": False},
        lambda given, first: {"trans_x": given["transpose_x"], "trans_y": given["transpose_y"]},
    ),
    "sum": StandIn("reduce_sum", _X, {"axis": None, "dtype": None, "keepdim": False}, _summed),
    **{
        name: StandIn(f"reduce_{name}", _X, _AXIS, _reduced)
        for name in ("amax", "amin", "all", "any")
    },
    **{
        f"arg{kind}": StandIn(f"arg_{kind}", _X, {**_AXIS, "dtype": "int64"}, _extreme)
        for kind in ("max", "min")
    },
    "logsumexp": StandIn("logsumexp", _X, _AXIS, _logsumexp),
    "roll": StandIn("roll", _X, {"shifts": None, "axis": None}, _rolled),
    "tril": StandIn("tril_triu", _X, {"diagonal": 0}, _triangle(lower=True)),
    "triu": StandIn("tril_triu", _X, {"diagonal": 0}, _triangle(lower=False)),
    "grid_sample": StandIn(
        "grid_sampler",
        {"x": "X", "grid": "Grid"},
        _SAMPLING,
        result="Output",
    ),
}
