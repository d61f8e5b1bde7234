"""Moves a ReLU from behind a concatenation to before it."""

from __future__ import annotations

from slim_det.graph.op import Op
from slim_det.graph.program import DeployProgram
from slim_det.graph.tracing import deployment_program


@deployment_program()
def move_relu_before_concat(p: DeployProgram) -> None:
    """Replace ``relu(concat(a, b))`` by the equal ``concat(relu(a), relu(b))``, in place.

    Only if a part of the concatenation has other readers: oneDNN's fusion in Paddle 3.3
    (``conv_activation_onednn_fuse_pass``) moves the ReLU into the convolutions before a
    concatenation, and so changes what their other readers get.
    """
    for concat in [op for op in p.ops if op.type == "concat"]:
        readers = p.readers(concat.output())
        is_shared = any(len(p.readers(name)) > 1 for name in concat.inputs["X"])
        if is_shared and [op.type for op in readers] == ["relu"]:
            _move(p, concat, readers[0])


def _move(p: DeployProgram, concat: Op, relu: Op) -> None:
    joined, activated = concat.output(), relu.output()
    p.remove(relu)
    p.rename_output(concat, joined, activated)
    for name in dict.fromkeys(concat.inputs["X"]):
        part = p.new_variable(f"{name}.relu", like=name)
        p.insert(p.ops.index(concat), "relu", {"X": [name]}, {"Out": [part]}, {})
        p.rename_input(concat, name, part)
    p.block._remove_var(joined)
