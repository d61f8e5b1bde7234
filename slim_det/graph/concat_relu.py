"""Moves a ReLU from behind a concatenation to before it."""

from __future__ import annotations

from typing import Any


def move_relu_before_concat(block: Any) -> None:
    """Replace ``relu(concat(a, b))`` by ``concat(relu(a), relu(b))``, which is the same, in place.

    Done where a tensor that is concatenated has other readers too. oneDNN's fusion in Paddle 3.3
    (``conv_activation_onednn_fuse_pass``) gives the ReLU to the convolutions before a
    concatenation, and with it to all who read them.

    Args:
        block: Paddle's block of operators, of the `.pdmodel` format.
    """
    for concat in [op for op in block.ops if op.type == "concat"]:
        readers = _readers(block, concat.output("Out")[0])
        is_shared = any(len(_readers(block, name)) > 1 for name in concat.input("X"))
        if is_shared and [op.type for op in readers] == ["relu"]:
            _move(block, concat, readers[0])


def _move(block: Any, concat: Any, relu: Any) -> None:
    whole, activated = concat.output("Out")[0], relu.output("Out")[0]
    block._remove_op(block.ops.index(relu))
    concat._rename_output(whole, activated)
    for name in dict.fromkeys(concat.input("X")):
        part = block.create_var(
            name=f"{name}.relu", shape=block.var(name).shape, dtype=block.var(name).dtype
        )
        place = block.ops.index(concat)
        block._insert_op(place, type="relu", inputs={"X": [name]}, outputs={"Out": [part.name]})
        concat._rename_input(name, part.name)
    block._remove_var(whole)


def _readers(block: Any, name: str) -> list[Any]:
    return [op for op in block.ops if name in op.input_arg_names]
