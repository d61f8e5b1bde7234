"""Numbers of boxes of hand-made operators."""

from __future__ import annotations

from slim_det.graph.op import Op
from slim_det.graph.proposals import with_box_counts


def op(kind: str, inputs: list[str], outputs: list[str], **attrs: int) -> Op:
    return Op(kind, {"X": inputs}, {"Out": outputs}, attrs)


def test_a_program_without_boxes_stays_as_it_is() -> None:
    shapes = {"image": (1, 3, 8, 8), "rows": (-1, 4)}
    assert with_box_counts([op("relu", ["image"], ["rows"])], shapes) == shapes
    assert with_box_counts([], {}) == {}


def test_layers_behind_proposals_run_for_each_of_them() -> None:
    ops = [
        op("generate_proposals_v2", ["image"], ["rois"], post_nms_topN=300),
        op("distribute_fpn_proposals", ["rois"], ["large", "small"]),
        op("roi_align", ["image", "large"], ["left"]),
        op("roi_align", ["image", "small"], ["right"]),
        op("concat", ["left", "right"], ["both"]),
        op("shape", ["both"], ["sizes"]),
        op("multiclass_nms3", ["both"], ["found"], keep_top_k=100),
        op("conv2d", ["found", "weight"], ["masks"]),
        op("relu", ["image"], ["map"]),
    ]
    shapes = {
        "image": (1, 3, 8, 8), "weight": (4, 3, 1, 1), "map": (-1, 3, 8, 8), "sizes": (4,),
        **{name: (-1, 4) for name in "rois large small left right both found masks".split()},
    }  # fmt: skip
    found = with_box_counts(ops, shapes)
    assert [found[name][0] for name in "rois large small left right both".split()] == [300] * 6
    assert [found[name] for name in ("found", "masks")] == [(100, 4), (100, 4)]
    for name in ("image", "weight", "map", "sizes"):
        assert found[name] == shapes[name]


def test_the_best_of_several_lists() -> None:
    ops = [
        op("generate_proposals_v2", ["image"], ["a"], post_nms_topN=300),
        op("generate_proposals_v2", ["image"], ["b"], post_nms_topN=300),
        op("concat", ["a", "b"], ["all"]),
        op("top_k_v2", ["all"], ["best"], k=200),
        op("top_k_v2", ["scores"], ["first"], k=7),
        op("multiclass_nms3", ["scores"], ["every"], keep_top_k=-1),
    ]
    names = ("a", "b", "all", "best", "first", "every", "scores")
    found = with_box_counts(ops, {name: (-1, 4) for name in names})
    assert [found[name][0] for name in names] == [300, 300, 300, 200, 7, -1, -1]
