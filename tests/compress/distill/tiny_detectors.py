"""Detectors of a few convolutions, put together as ppdet's YOLOv3 is."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
from paddle import Tensor, nn
from paddle.utils import unique_name

from slim_det.compress.distill.distiller import Distiller
from slim_det.compress.distill.settings import read_terms

CLASSES = 1
CHANNELS = 5 + CLASSES


class Backbone(nn.Layer):
    """Image -> one feature map, of stride 16."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2D(3, width, 16, stride=16, bias_attr=False)
        self.bn = nn.BatchNorm2D(width)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.bn(self.conv(batch["image"]))


class Neck(nn.Layer):
    """One feature map -> two: of stride 32 and 16."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.tips = nn.LayerList([nn.Conv2D(width, width, 3, padding=1) for _ in range(2)])
        self.unused = nn.Conv2D(width, width, 1)

    def forward(self, feature: Tensor) -> list[Tensor]:
        pooled = nn.functional.avg_pool2d(feature, 2, 2)
        return [self.tips[0](pooled), self.tips[1](feature)]


class Head(nn.Layer):
    """Feature maps -> raw YOLO outputs, or their mean square as a detection loss."""

    def __init__(self, width: int, scales: int = 2) -> None:
        super().__init__()
        self.outputs = [
            self.add_sublayer(f"yolo_output.{scale}", nn.Conv2D(width, CHANNELS, 1))
            for scale in range(scales)
        ]

    def forward(self, features: list[Tensor], targets: Any = None) -> Any:
        raw = [output(feature) for output, feature in zip(self.outputs, features)]
        if not self.training:
            return raw
        losses = {f"loss_{i}": (x - 1.0).square().mean() for i, x in enumerate(raw)}
        return {**losses, "loss": sum(losses.values())}


class TinyDetector(nn.Layer):
    """A detector that counts how often each of its parts ran."""

    def __init__(self, width: int = 4, scales: int = 2) -> None:
        super().__init__()
        self.backbone, self.neck, self.yolo_head = Backbone(width), Neck(width), Head(width, scales)
        self.runs = {"backbone": 0, "boxes": 0}
        self.backbone.register_forward_post_hook(lambda *_: self._count("backbone"))

    def forward(self, batch: dict[str, Tensor]) -> Any:
        features = self.neck(self.backbone(batch))
        if self.training:
            return self.yolo_head(features, batch)
        self._count("boxes")
        return {"bbox": self.yolo_head(features)[0]}

    def _count(self, what: str) -> None:
        self.runs[what] += 1


def tiny_detector(seed: int, width: int = 4, scales: int = 2) -> TinyDetector:
    """A detector whose automatic names start at zero, as each model's of slim_det do."""
    paddle.seed(seed)
    with unique_name.guard():
        return TinyDetector(width, scales)


def make_batch(seed: int = 0) -> dict[str, Tensor]:
    """Two images of 64x64 pixels."""
    rng = np.random.default_rng(seed)
    return {"image": paddle.to_tensor(rng.normal(size=(2, 3, 64, 64)).astype("float32"))}


def distilled(
    student: TinyDetector, teacher: TinyDetector, *args: Any, **settings: Any
) -> Distiller:
    """A student in training mode with its distiller attached; settings as in a slim file."""
    distiller = Distiller(student, teacher, read_terms(*args, **settings), CLASSES)
    distiller.attach()
    student.train()
    return distiller


def pair(loss: str, layer: str = "neck.tips.1", **more: Any) -> dict[str, Any]:
    """A pair of a slim file between layers of one name."""
    return {"loss": loss, "student": layer, "teacher": layer, **more}


def arrays(model: nn.Layer) -> dict[str, np.ndarray]:
    """A copy of every parameter and statistic."""
    return {name: value.numpy().copy() for name, value in model.state_dict().items()}


def same(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> bool:
    """Whether two copies are equal to the last bit."""
    return left.keys() == right.keys() and all(np.array_equal(left[k], right[k]) for k in left)


def raw_outputs(model: TinyDetector, batch: dict[str, Tensor]) -> list[np.ndarray]:
    """Raw YOLO outputs in the mode that the model is in, computed part by part."""
    features = model.neck(model.backbone(batch))
    return [conv(x).numpy() for conv, x in zip(model.yolo_head.outputs, features)]
