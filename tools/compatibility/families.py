"""Families of detectors, each by one of PaddleDetection's own configurations."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """A family of detectors.

    Attributes:
        name: Short, and the name of its folder.
        config: Configuration below `configs/` of the checkout.
        overrides: Settings, as after `-o`.
    """

    name: str
    config: str
    overrides: tuple[str, ...] = ()


# Matrix NMS compares every box with every other: an untrained detector would take minutes an image.
FEW_BOXES = ("BBoxPostProcess.nms.score_threshold=0.5",)

# Frozen batch norms of random weights do not normalise: activations reach thousands, and gradients
# are NaN in the second step, with and without a quantizer.
_NORMALISED = ("ResNet.freeze_norm=false",)

# CenterNet gives the best 100 places of an image. An untrained one gives every place the same score
# but for rounding, which would decide; below 0.05, boxes are not compared.
_UNSURE = ("CenterNetHead.prior_bias=-4.6",)

FAMILIES = (
    Family("yolov3", "yolov3/yolov3_mobilenet_v1_270e_coco.yml"),
    Family("ppyoloe+", "ppyoloe/ppyoloe_plus_crn_s_80e_coco.yml"),
    Family("ppyoloe", "ppyoloe/ppyoloe_crn_s_300e_coco.yml"),
    Family("picodet", "picodet/picodet_s_320_coco_lcnet.yml"),
    Family("picodet-esnet", "picodet/legacy_model/picodet_s_320_coco.yml"),
    Family("ppyolo", "ppyolo/ppyolo_r50vd_dcn_1x_coco.yml", FEW_BOXES),
    Family("ppyolo-mbv3", "ppyolo/ppyolo_mbv3_large_coco.yml", FEW_BOXES),
    Family("ppyolo-tiny", "ppyolo/ppyolo_tiny_650e_coco.yml", FEW_BOXES),
    Family("ppyolov2", "ppyolo/ppyolov2_r50vd_dcn_365e_coco.yml", FEW_BOXES),
    Family("yolox-nano", "yolox/yolox_nano_300e_coco.yml"),
    Family("yolox-s", "yolox/yolox_s_300e_coco.yml"),
    Family("ssd", "ssd/ssd_mobilenet_v1_300_120e_voc.yml"),
    Family("ssdlite", "ssd/ssdlite_mobilenet_v1_300_coco.yml"),
    Family("fcos", "fcos/fcos_r50_fpn_1x_coco.yml"),
    Family("gfl", "gfl/gfl_r50_fpn_1x_coco.yml"),
    Family("retinanet", "retinanet/retinanet_r50_fpn_1x_coco.yml"),
    Family("tood", "tood/tood_r50_fpn_1x_coco.yml"),
    Family("yolof", "yolof/yolof_r50_c5_1x_coco.yml"),
    Family("centernet", "centernet/centernet_mbv3_small_140e_coco.yml", _UNSURE),
    Family("ttfnet", "ttfnet/pafnet_lite_mobilenet_v3_20x_coco.yml"),
    Family("faster-rcnn", "faster_rcnn/faster_rcnn_r50_fpn_1x_coco.yml", _NORMALISED),
    Family("mask-rcnn", "mask_rcnn/mask_rcnn_r50_fpn_1x_coco.yml", _NORMALISED),
    Family("cascade-rcnn", "cascade_rcnn/cascade_rcnn_r50_fpn_1x_coco.yml", _NORMALISED),
    Family("rtdetr", "rtdetr/rtdetr_r18vd_6x_coco.yml"),
    Family("tinypose", "keypoint/tiny_pose/tinypose_128x96.yml"),
)
