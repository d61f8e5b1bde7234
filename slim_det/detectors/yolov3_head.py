"""The layers of a YOLOv3 head: their names, the names that older tools gave them, preset ratios."""

from __future__ import annotations

import re
from collections.abc import Collection

_BLOCK_LAYERS = (
    "conv_module.conv0",
    "conv_module.conv1",
    "conv_module.conv2",
    "conv_module.conv3",
    "conv_module.route",
    "tip",
)

YOLO_HEAD_LAYERS: tuple[str, ...] = tuple(
    f"neck.yolo_block.{block}.{layer}" for block in range(3) for layer in _BLOCK_LAYERS
)
"""The 18 layers of a YOLOv3 head, whatever the backbone, in the order of the presets."""

_HISTORICAL_BLOCK = dict(zip(("0.0", "0.1", "1.0", "1.1", "2", "tip"), _BLOCK_LAYERS))

_HISTORICAL = (
    (re.compile(r"yolo_block\.(\d)\.(0\.0|0\.1|1\.0|1\.1|2|tip)"), "neck.yolo_block.{0}.{1}"),
    (re.compile(r"yolo_transition\.(\d)"), "neck.yolo_transition.{0}"),
    (re.compile(r"yolo_output\.(\d)"), "yolo_head.yolo_output.{0}"),
)
_HISTORICAL_END = re.compile(r"\.conv\.(weights|bias)$|\.bn\.(scale|offset|mean|var)$")

PRESETS: dict[str, dict[str, float]] = {
    # Shares measured for a YOLOv3 head: half of the first block, more of the later ones.
    "r578": dict(zip(YOLO_HEAD_LAYERS, [0.5] * 6 + [0.7] * 6 + [0.8] * 6)),
    # Shares derived from the sensitivities of YOLOv3-MobileNetV1 on COCO.
    "sensity": dict(
        zip(
            YOLO_HEAD_LAYERS,
            [0.1, 0.2, 0.2, 0.2, 0.2, 0.1]
            + [0.2, 0.3, 0.3, 0.3, 0.2, 0.1]
            + [0.3, 0.4, 0.4, 0.4, 0.4, 0.3],
        )
    ),
}


def has_yolo_head(layers: Collection[str]) -> bool:
    """Whether the module paths of a model include every layer of a YOLOv3 head."""
    return all(name in layers for name in YOLO_HEAD_LAYERS)


def from_historical(name: str) -> str:
    """Turn `yolo_block.0.0.0.conv.weights` into its module path; other names pass unchanged."""
    stem = _HISTORICAL_END.sub("", name)
    for pattern, path in _HISTORICAL:
        match = pattern.fullmatch(stem)
        if match:
            number, *place = match.groups()
            return path.format(number, *(_HISTORICAL_BLOCK[part] for part in place))
    return name


def is_class_output(parameter: str) -> bool:
    """Whether a parameter belongs to the head, whose shapes depend on the number of classes."""
    return "head" in parameter.split(".")[0]
