"""PaddleDetection's own slim files, each with the configuration that it is meant for."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from families import FEW_BOXES

HERE = Path(__file__).parent

# Readers that keep the ratio make images of 800x1333, which take minutes a step here.
_SMALL = tuple(
    f"{reader}.sample_transforms=[{{Decode: {{}}}}, {{Resize: {{target_size: [160, 224], "
    "keep_ratio: true, interp: 1}}, {NormalizeImage: {is_scale: true, mean: [0.485, 0.456, 0.406], "
    "std: [0.229, 0.224, 0.225]}}, {Permute: {}}]"
    for reader in ("TrainReader", "TestReader")
)


@dataclass(frozen=True)
class SlimFile:
    """A slim file.

    Attributes:
        path: Below `configs/slim/` of the checkout, without suffix.
        config: Configuration of the detector, below `configs/`.
        overrides: Settings, as after `-o`.
    """

    path: str
    config: str
    overrides: tuple[str, ...] = ()

    @property
    def script(self) -> str:
        """PaddleDetection's script that takes it."""
        return "post_quant" if self.path.startswith("post_quant/") else "train"

    @property
    def name(self) -> str:
        """Its name, which is that of its folder too."""
        return self.path.replace("/", "-")

    def make_weights(self, checkout: Path, folder: Path, run: Callable[..., Any]) -> Path | None:
        """Write random weights under the names that the file downloads.

        Args:
            checkout: PaddleDetection.
            folder: The home directory of the command.
            run: Runs a script: arguments behind `python`, folder, name.

        Returns:
            Weights of the student of a distillation, which names none; None for other files.
        """
        text = self.file(checkout).read_text(encoding="utf-8")
        names = re.findall(r"^(?:pretrain_)?weights:\s*\S+/(\S+\.pdparams)", text, re.MULTILINE)
        config = checkout / "configs" / self.config
        teaches = "_BASE_" in text
        for name in names:
            source = self.file(checkout) if teaches else config
            path = folder / ".cache" / "paddle" / "weights" / name
            if not path.exists():
                run([str(HERE / "weights.py"), str(source), str(path)], folder, "weights")
        if not teaches:
            return None
        start = folder / "start.pdparams"
        if not start.exists():
            run([str(HERE / "weights.py"), str(config), str(start)], folder, "start")
        return start

    def command(self, checkout: Path, folder: Path, start: Path | None) -> list[str]:
        """Arguments behind `python`.

        Args:
            checkout: PaddleDetection.
            folder: Where to save.
            start: Weights to start from; None for those that the file names.
        """
        settings = [
            *("use_gpu=false", "worker_num=0", "epoch=1", "TrainReader.batch_size=2"),
            *("LearningRate.base_lr=0.0001", "log_iter=1"),
            *("skip_teacher_eval=true", f"save_dir={folder}", *self.overrides),
        ]
        if self.path.endswith(("_qat", "_quant", "_qat_pact")):
            # Rounded features of an untrained detector are often constant in two images, and batch
            # norms of the batch would amplify their gradients.
            settings += ["QAT.calibration_images=4", "QAT.freeze_bn_epoch=0"]
        if self.script == "post_quant":
            settings += ["PTQ.quant_batch_num=2", "EvalReader.batch_size=2"]
        if start:
            settings.append(f"pretrain_weights={start}")
        return [
            *("-m", "slim_det", str(checkout / "tools" / f"{self.script}.py")),
            *("-c", str(checkout / "configs" / self.config)),
            *("--slim_config", str(self.file(checkout)), "-o", *settings),
        ]

    def file(self, checkout: Path) -> Path:
        """The file itself."""
        return checkout / "configs" / "slim" / f"{self.path}.yml"


_YOLOV3_MBV1 = "yolov3/yolov3_mobilenet_v1_270e_coco.yml"
_YOLOV3_VOC = "yolov3/yolov3_mobilenet_v1_270e_voc.yml"
_DARKNET = "yolov3/yolov3_darknet53_270e_coco.yml"
_PPYOLO = "ppyolo/ppyolo_r50vd_dcn_1x_coco.yml"
_PPYOLO_MBV3 = "ppyolo/ppyolo_mbv3_large_coco.yml"
_PICODET_M = "picodet/legacy_model/picodet_m_320_coco.yml"
_PICODET_S = "picodet/legacy_model/picodet_s_320_coco.yml"
_MASK_RCNN = "mask_rcnn/mask_rcnn_r50_fpn_1x_coco.yml"
_FASTER_RCNN = "faster_rcnn/faster_rcnn_r50_fpn_1x_coco.yml"
_TINYPOSE = "keypoint/tiny_pose/tinypose_128x96.yml"
_RETINANET = "retinanet/retinanet_r50_fpn_2x_coco.yml"

SLIM_FILES = (
    SlimFile("distill/gfl_ld_distill", "gfl/gfl_slim_ld_r18vd_1x_coco.yml", _SMALL),
    SlimFile("distill/gfl_r101vd_fpn_coco_distill_cwd", "gfl/gfl_r50_fpn_1x_coco.yml", _SMALL),
    *(
        SlimFile(
            f"distill/ppyoloe_plus_distill_{teacher}_distill_{student}",
            f"ppyoloe/distill/ppyoloe_plus_crn_{student}_80e_coco_distill.yml",
        )
        for teacher, student in ("lm", "ms", "xl")
    ),
    SlimFile("distill/retinanet_resnet101_coco_distill", _RETINANET, _SMALL),
    SlimFile("distill/retinanet_resnet101_coco_distill_cwd", _RETINANET, _SMALL),
    SlimFile("distill/yolov3_mobilenet_v1_coco_distill", _YOLOV3_MBV1),
    SlimFile("extensions/yolov3_mobilenet_v1_coco_distill_prune", _YOLOV3_MBV1),
    SlimFile("extensions/yolov3_mobilenetv1_prune_qat", _YOLOV3_VOC),
    SlimFile("ofa/ofa_picodet_demo", _PICODET_S),
    SlimFile("post_quant/mask_rcnn_r50_fpn_1x_coco_ptq", _MASK_RCNN, _SMALL),
    SlimFile(
        "post_quant/mcfairmot_ptq",
        "mot/mcfairmot/mcfairmot_dla34_30e_1088x608_visdrone_vehicle_bytetracker.yml",
    ),
    SlimFile("post_quant/picodet_s_ptq", _PICODET_S),
    SlimFile("post_quant/ppyolo_mbv3_large_ptq", _PPYOLO_MBV3, FEW_BOXES),
    SlimFile("post_quant/ppyolo_r50vd_dcn_ptq", _PPYOLO, FEW_BOXES),
    SlimFile("post_quant/ppyoloe_crn_s_300e_coco_ptq", "ppyoloe/ppyoloe_crn_s_300e_coco.yml"),
    SlimFile("post_quant/tinypose_128x96_ptq", _TINYPOSE),
    SlimFile("post_quant/yolov3_darknet53_ptq", _DARKNET),
    SlimFile(
        "prune/faster_rcnn_r50_fpn_prune_fpgm",
        "faster_rcnn/faster_rcnn_r50_fpn_1x_coco.yml",
        _SMALL,
    ),
    SlimFile("prune/picodet_m_unstructured_prune_75", _PICODET_M),
    SlimFile("prune/picodet_m_unstructured_prune_85", _PICODET_M),
    SlimFile("prune/ppyolo_mbv3_large_prune_fpgm", _PPYOLO_MBV3),
    SlimFile("prune/ppyolo_r50vd_prune_fpgm", _PPYOLO),
    SlimFile("prune/yolov3_darknet_prune_fpgm", _DARKNET),
    SlimFile("prune/yolov3_prune_fpgm", _YOLOV3_VOC),
    SlimFile("prune/yolov3_prune_l1_norm", _YOLOV3_VOC),
    SlimFile("quant/mask_rcnn_r50_fpn_1x_qat", _MASK_RCNN, _SMALL),
    SlimFile("quant/picodet_s_416_lcnet_quant", "picodet/picodet_s_416_coco_lcnet.yml"),
    SlimFile("quant/picodet_s_quant", _PICODET_S),
    SlimFile("quant/ppyolo_mbv3_large_qat", _PPYOLO_MBV3),
    SlimFile("quant/ppyolo_r50vd_qat_pact", _PPYOLO),
    SlimFile("quant/ppyoloe_l_qat", "ppyoloe/ppyoloe_crn_l_300e_coco.yml"),
    SlimFile("quant/ppyolov2_r50vd_dcn_qat", "ppyolo/ppyolov2_r50vd_dcn_365e_coco.yml"),
    SlimFile("quant/ssd_mobilenet_v1_qat", "ssd/ssd_mobilenet_v1_300_120e_voc.yml"),
    SlimFile("quant/tinypose_qat", _TINYPOSE),
    SlimFile("quant/yolov3_darknet_qat", _DARKNET),
    SlimFile("quant/yolov3_mobilenet_v1_qat", _YOLOV3_MBV1),
    SlimFile("quant/yolov3_mobilenet_v3_qat", "yolov3/yolov3_mobilenet_v3_large_270e_coco.yml"),
)
