"""How many boxes the layers behind a proposal or NMS run on; a program leaves it open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from slim_det.graph.op import Op

_LIMITS = {
    "generate_proposals_v2": "post_nms_topN",
    "multiclass_nms3": "keep_top_k",
    "matrix_nms": "keep_top_k",
    "top_k_v2": "k",
}
"""Operators that keep the best boxes of an image -> attribute with their largest number."""


def with_box_counts(
    ops: Sequence[Op], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """Shapes whose first side, where it is open, is the largest number of boxes of an image.

    Args:
        ops: Operators of a program for one image, in execution order.
        shapes: Variable -> shape; -1 for sides that are open.

    Returns:
        The shapes. A side stays open if it is not the number of boxes.
    """
    counts: dict[str, int] = {}
    for op in ops:
        limit = int(op.attrs.get(_LIMITS.get(op.type, ""), 0))
        # The boxes of an image are divided among levels and joined again, so they do not add up.
        count = max((counts.get(name, 0) for name in op.input_arg_names), default=0)
        if limit > 0:
            count = min(count, limit) or limit
        if count:
            counts.update(dict.fromkeys(op.output_arg_names, count))
    return {
        name: (counts[name], *shape[1:]) if name in counts and shape[:1] == (-1,) else shape
        for name, shape in shapes.items()
    }
