"""The one table of operators: all that slim_det knows about an operator type.

An operator that is not here can run, but it freezes the channels that it reads, costs no MACs and
stays in float. A new one is one entry, and a small function in `channel_rules`, `shape_ops` or
`mac_rules` if no rule fits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from slim_det.graph import channel_rules as channels
from slim_det.graph import mac_rules as macs
from slim_det.graph import shape_ops
from slim_det.graph.channels import Rule, unknown
from slim_det.graph.linear_rules import (
    Convolution,
    DeformableConvolution,
    LinearRule,
    Product,
    TransposedConvolution,
)
from slim_det.graph.op import Op


@dataclass(frozen=True)
class Operator:
    """What is known about one operator type.

    Attributes:
        channels: What it does to the channels of its inputs.
        macs: Rule that counts how often each number of its weight is used; None for no MACs.
        data: Input slot of the tensor whose channels its weight reads.
        weight: Input slot of its weight; '' for none.
        bias: Input slot that may hold a bias; '' for none.
        result: Output slot.
        sampling: Input slots with the positions where ``data`` is sampled.
        linear: How it is written as a matrix product; None if it is none.
        int8_kernel: It is a convolution that int8 engines have a kernel for.
        fused: The engine runs it inside the float convolution before it.
        fused_int8: It becomes part of the int8 convolution before it.
        unsigned: oneDNN keeps its output in unsigned integers.
        reads_integers: It can read the integers that its input was rounded to for another operator.
        keeps_range: Whether its output holds integers of its input, and so has the same range.

    The attributes from `int8_kernel` on describe Paddle Inference with oneDNN. They stay False
    unless its passes are known to treat the operator so: a missing True can cost speed and
    accuracy, a wrong one makes the simulated model differ from the exported file.
    """

    channels: Rule = unknown
    macs: macs.MacRule | None = None
    data: str = "X"
    weight: str = ""
    bias: str = ""
    result: str = "Out"
    sampling: tuple[str, ...] = ()
    linear: LinearRule | None = None
    int8_kernel: bool = False
    fused: bool = False
    fused_int8: bool = False
    unsigned: bool = False
    reads_integers: bool = False
    keeps_range: Callable[[Op], bool] = lambda op: False


def declared(op: Op) -> Operator:
    """The entry of an operator; one with defaults if it is not in the table."""
    return OPERATORS.get(op.type, Operator())


def data_of(op: Op) -> str:
    """The variable that an operator computes on."""
    return op.input(declared(op).data)


def weight_of(op: Op) -> str:
    """The variable of an operator's weight; '' for none."""
    return op.input(declared(op).weight)


def result_of(op: Op) -> str:
    """The variable that an operator writes."""
    return op.output(declared(op).result)


def fused_activations() -> list[str]:
    """Operators that the engine runs inside the float convolution before them."""
    return [kind for kind, operator in OPERATORS.items() if operator.fused]


def _takes_maxima(op: Op) -> bool:
    return op.attrs.get("pooling_type") == "max"


_CONVOLUTION = Operator(
    channels.convolution,
    macs.each_output_pixel,
    data="Input",
    weight="Filter",
    result="Output",
    linear=Convolution(),
    int8_kernel=True,
)
_DEFORMABLE = replace(
    _CONVOLUTION,
    int8_kernel=False,
    sampling=("Offset", "Mask"),
    linear=DeformableConvolution(),
)
_TRANSPOSED = replace(
    _CONVOLUTION,
    channels=channels.transposed_convolution,
    macs=macs.each_input_pixel,
    linear=TransposedConvolution(),
    int8_kernel=False,
)
_PRODUCT = Operator(channels.matrix_product, macs.each_row, weight="Y", linear=Product())
_SAME = Operator(channels.same)
_ACTIVATION = replace(_SAME, fused=True, fused_int8=True)
_SPATIAL = Operator(channels.spatial)
_ELEMENTWISE = Operator(channels.elementwise)
_SHAPE_ONLY = Operator(channels.reads_only_shapes)

OPERATORS: dict[str, Operator] = {
    # with weights
    "conv2d": _CONVOLUTION,
    "depthwise_conv2d": _CONVOLUTION,
    "deformable_conv": _DEFORMABLE,
    "deformable_conv_v1": replace(_DEFORMABLE, sampling=("Offset",)),
    "conv2d_transpose": _TRANSPOSED,
    "depthwise_conv2d_transpose": _TRANSPOSED,
    "matmul_v2": _PRODUCT,
    "mul": _PRODUCT,
    "lookup_table_v2": Operator(data="Ids", weight="W"),
    "batch_norm": Operator(channels.batch_norm, result="Y"),
    "sync_batch_norm": Operator(channels.batch_norm, result="Y"),
    "group_norm": Operator(channels.group_norm, result="Y"),
    "prelu": Operator(channels.prelu),
    # functions of one number
    "relu": replace(_ACTIVATION, unsigned=True),
    "relu6": replace(_ACTIVATION, unsigned=True),
    "leaky_relu": _ACTIVATION,
    "hard_swish": _ACTIVATION,
    "hard_sigmoid": Operator(channels.gate, fused=True),
    "swish": _ACTIVATION,
    "sigmoid": Operator(channels.gate, fused=True),
    "tanh": replace(_SAME, fused=True),
    "mish": replace(_SAME, fused=True),
    **dict.fromkeys("elu selu gelu silu softsign hard_shrink softshrink".split(), _SAME),
    **dict.fromkeys("abs square sqrt sign floor assign cast dropout".split(), _SAME),
    **dict.fromkeys(("softplus", "exp"), Operator(channels.gate)),
    "scale": Operator(channels.scale),
    "clip": Operator(channels.clip),
    # of two tensors
    "elementwise_add": replace(_ELEMENTWISE, bias="Y"),
    **{f"elementwise_{kind}": _ELEMENTWISE for kind in ("sub", "mul", "div", "max", "min")},
    # pooling and resizing
    "pool2d": replace(_SPATIAL, reads_integers=True, keeps_range=_takes_maxima),
    "max_pool2d_with_index": _SPATIAL,
    **dict.fromkeys(
        ("nearest_interp", "nearest_interp_v2"), replace(_SPATIAL, keeps_range=lambda op: True)
    ),
    **dict.fromkeys("bicubic_interp_v2 bilinear_interp bilinear_interp_v2".split(), _SPATIAL),
    "pad3d": Operator(channels.pad),
    "roi_align": _SPATIAL,
    # shape ops
    "concat": Operator(shape_ops.concat),
    "split": Operator(shape_ops.split),
    **dict.fromkeys(("slice", "strided_slice"), Operator(shape_ops.slice_, data="Input")),
    "gather": Operator(shape_ops.gather),
    "select_input": Operator(shape_ops.select),
    "reshape2": Operator(shape_ops.reshape),
    "flatten_contiguous_range": Operator(shape_ops.flatten),
    "squeeze2": Operator(shape_ops.squeeze),
    "unsqueeze2": Operator(shape_ops.unsqueeze),
    "transpose2": Operator(shape_ops.transpose),
    **dict.fromkeys(("reduce_mean", "reduce_sum", "reduce_max"), Operator(shape_ops.reduce)),
    # operators that read only the shape of their input
    "shape": replace(_SHAPE_ONLY, data="Input"),
    **dict.fromkeys(("feed", "fetch", "fill_any_like"), _SHAPE_ONLY),
    "prior_box": replace(_SHAPE_ONLY, data="Input", result="Boxes"),
}
