"""Module paths: the names by which slim_det stores and prints the layers of a model."""

from __future__ import annotations

import paddle


def layer_names(model: paddle.nn.Layer) -> dict[str, str]:
    """Module path of every weight matrix or filter of a model.

    Returns:
        State-dict name -> the shortest path that holds only this weight, at most one level up:
        `neck.x.tip.conv.weight` -> `neck.x.tip`. Weights of the same module keep their full names.
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
