"""Names of layers: module path, ppdet parameter name, historical name, automatic name.

The only place that knows them all. The module path (`neck.yolo_block.0.conv_module.conv0`) is
the one that slim_det stores and prints; the others are accepted wherever a layer is named.
"""

from __future__ import annotations

import fnmatch
import re

import paddle

from slim_det.errors import LayerError, nearest

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
    """Whether a parameter's shape depends on the number of classes, as in any fine-tuning."""
    return "head" in parameter.split(".")[0]


def layer_names(model: paddle.nn.Layer) -> dict[str, str]:
    """Module path of every weight matrix or filter of a model.

    Returns:
        State-dict name -> the shortest path that holds only this weight, one level up at
        most: `neck.x.tip.conv.weight` -> `neck.x.tip`. Weights of one and the same module
        keep their full names.
    """
    weights = [name for name, param in model.named_parameters() if param.ndim >= 2]
    names = {}
    for name in weights:
        path = name.rsplit(".", 1)[0]
        parent = path.rpartition(".")[0]
        inside = sum(other.startswith(f"{parent}.") for other in weights) if parent else 0
        names[name] = parent if inside == 1 else path
    paths = list(names.values())
    return {name: path if paths.count(path) == 1 else name for name, path in names.items()}


class LayerFinder:
    """Finds the weights that a name means, in any spelling.

    Args:
        model: The model whose layers are named.
    """

    def __init__(self, model: paddle.nn.Layer) -> None:
        self._paths = layer_names(model)
        self._automatic = {p.name: name for name, p in model.named_parameters()}

    @property
    def paths(self) -> list[str]:
        """Every module path that can be named."""
        return list(self._paths.values())

    def find(self, spelling: str) -> list[str]:
        """State-dict names of the weights that ``spelling`` means.

        Args:
            spelling: Module path, path of a module that holds one weight, glob, parameter
                name, historical name, or ppdet's automatic name (`conv2d_27.w_0`).

        Raises:
            LayerError: Nothing, or more than one layer without a glob, has this name.
        """
        if not isinstance(spelling, str):
            raise LayerError(f"layer name {spelling!r} is not text; expected a layer name")
        name = self._automatic.get(spelling, from_historical(spelling))
        exact = [w for w, path in self._paths.items() if name in (w, path, w.rsplit(".", 1)[0])]
        if exact:
            return exact
        if any(sign in name for sign in "*?["):
            found = [
                w
                for w, path in self._paths.items()
                if fnmatch.fnmatchcase(path, name) or fnmatch.fnmatchcase(w, name)
            ]
            if found:
                return found
            raise LayerError(f"no layer matches '{spelling}'{nearest(name, self.paths)}")
        inside = [w for w in self._paths if w.startswith(f"{name}.")]
        if len(inside) == 1:
            return inside
        if inside:
            raise LayerError(
                f"'{spelling}' holds {len(inside)} layers; name one of them, or all of them "
                f"with '{name}.*'"
            )
        choices = self.paths + list(self._automatic if re.match(r"\w+_\d+\.", name) else [])
        raise LayerError(f"unknown layer '{spelling}'{nearest(name, choices)}")
