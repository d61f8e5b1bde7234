"""Finds a layer in any spelling: module path, parameter name, historical name, automatic name.

The module path (`neck.yolo_block.0.conv_module.conv0`) is the one that slim_det stores and prints;
the others are accepted wherever a layer is named.
"""

from __future__ import annotations

import fnmatch
import re

import paddle

from slim_det.core.errors import LayerError, nearest
from slim_det.detectors.yolov3_head import from_historical
from slim_det.graph.layer_names import layer_names


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
