"""ppdet's loss of single-shot detectors, in a form that Paddle 3 can compute."""

from __future__ import annotations

import paddle
from ppdet.core.workspace import serializable
from ppdet.modeling.losses import SSDLoss as SSDLossOfPpdet


@serializable
class SSDLoss(SSDLossOfPpdet):
    """Smooth L1 of matched anchors and cross-entropy with hard negatives, per matched anchor.

    Liu et al. 2016 (arXiv 1512.02325), section 2.2; keys and sums are ppdet's. ppdet 2.6 compares
    integer ranks with float counts, which Paddle 3 refuses.
    """

    def forward(
        self,
        boxes: list[paddle.Tensor],
        scores: list[paddle.Tensor],
        gt_bbox: paddle.Tensor,
        gt_label: paddle.Tensor,
        prior_boxes: list[paddle.Tensor],
    ) -> paddle.Tensor:
        """The loss of a batch; rows of ``gt_bbox`` that are padding are not matched.

        Args:
            boxes: Offsets of each feature map, [B, A_i, 4].
            scores: Class scores of each feature map, background last, [B, A_i, classes + 1].
            gt_bbox: Objects, xyxy as shares of the image, zeros behind the last, [B, N, 4].
            gt_label: Their classes, [B, N].
            prior_boxes: Anchors of each feature map, xyxy as shares of the image, [A_i, 4].
        """
        filled = gt_bbox.abs().sum(axis=[0, 2]).numpy().nonzero()[0]
        used = int(filled[-1]) + 1 if filled.size else 1
        return super().forward(boxes, scores, gt_bbox[:, :used], gt_label[:, :used], prior_boxes)

    def _mine_hard_example(
        self,
        conf_loss: paddle.Tensor,
        targets_label: paddle.Tensor,
        bg_index: int,
        mine_neg_ratio: float = 0.01,
    ) -> paddle.Tensor:
        """Mark the anchors that count: matched ones, and those of the others with the highest loss.

        Args:
            conf_loss: Cross-entropy, float [B, A].
            targets_label: Class of each anchor, int64 [B, A].
            bg_index: The class of anchors that match nothing.
            mine_neg_ratio: Share of all anchors to mark in an image where none is matched.

        Returns:
            bool [B, A]; ``neg_pos_ratio`` negatives for each positive of the same image.
        """
        anchors = targets_label.shape[1]
        matched = targets_label != bg_index
        positives = matched.astype("float32").sum(axis=1, keepdim=True)
        wanted = paddle.where(
            positives > 0,
            paddle.clip(positives * self.neg_pos_ratio, max=float(anchors)),
            paddle.full_like(positives, anchors * mine_neg_ratio),
        )
        hardness = paddle.where(matched, paddle.zeros_like(conf_loss), conf_loss.detach())
        rank = hardness.argsort(axis=1, descending=True).argsort(axis=1).astype("float32")
        return paddle.logical_or(matched, rank < wanted)
