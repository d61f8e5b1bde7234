"""Small networks, cut and repaired on images that are drawn."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle.static import InputSpec

from slim_det.compress.prune.groups import ModelGroups, find_groups
from slim_det.compress.prune.plan import Plan, apply_plan
from slim_det.compress.prune.pruner import Pruner
from slim_det.compress.prune.reconstruct.reconstruction import Reconstruction, Repair
from slim_det.compress.prune.reconstruct.settings import Calibration
from slim_det.graph.program import DeployProgram
from slim_det.graph.trace import Trace, layer_program, trace_layer

SHAPE = (3, 8, 8)


def drawn_images(
    count: int, shape: tuple[int, ...] = SHAPE, seed: int = 0, scale: float = 1.0
) -> list[np.ndarray]:
    """Smooth random images [1, C, H, W], float32: neighbouring pixels are alike."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, *shape))
    smooth = x + np.roll(x, 1, -1) + np.roll(x, 1, -2)
    return [scale * one[None].astype(np.float32) for one in smooth]


class Prepared:
    """A network with its trace, its groups and its program."""

    def __init__(self, net: paddle.nn.Layer, shape: tuple[int, ...] = SHAPE) -> None:
        self.net = net
        net.eval()
        self.spec = [InputSpec([1, *shape], "float32", "x")]
        self.trace: Trace = trace_layer(net, self.spec)
        self.groups: ModelGroups = find_groups(net, self.trace)

    def program(self, net: paddle.nn.Layer | None = None) -> DeployProgram:
        return layer_program(net or self.net, self.spec)

    @property
    def parameters(self) -> dict[str, str]:
        return dict(self.trace.parameters)

    def reconstruction(
        self, images: list[np.ndarray], folder: Path, seed: int = 0, **calibration: Any
    ) -> Reconstruction:
        return Reconstruction(
            self.program,
            self.net,
            self.trace.parameters,
            self.groups,
            Calibration(**calibration),
            seed,
            iter({"x": image} for image in images),
            folder,
        )

    def plan(self, ratios: Any, reconstruction: Reconstruction | None = None, **more: Any) -> Plan:
        """The plan of a pruner; by elimination if a reconstruction is given that has observed."""
        pruner = Pruner(pruned_ratios=ratios, **more)
        scores = reconstruction.scores if reconstruction else None
        return pruner.plan(self.net, self.trace, self.groups, scores=scores)

    def cut_and_repaired(
        self, ratios: Any, images: list[np.ndarray], folder: Path, seed: int = 0,
        choose: bool = False, criterion: str = "l1_norm", **calibration: Any,
    ) -> tuple[Plan, Repair]:  # fmt: skip
        """Prune and repair the network in place."""
        made = self.reconstruction(images, folder, seed, **calibration)
        names = list(ratios)
        made.observe(names, choose, True)
        plan = self.plan(ratios, made if choose else None, criterion=criterion, seed=seed)
        apply_plan(self.net, plan)
        return plan, made.repair(self.net, plan)


def outputs(net: paddle.nn.Layer, images: list[np.ndarray]) -> list[np.ndarray]:
    """All outputs of a network, image by image, each as one vector."""
    net.eval()
    with paddle.no_grad():
        results = [net(paddle.to_tensor(image)) for image in images]
    flat = [one if isinstance(one, (list, tuple)) else [one] for one in results]
    return [np.concatenate([part.numpy().ravel() for part in one]) for one in flat]


def squared_error(left: list[np.ndarray], right: list[np.ndarray]) -> float:
    """Sum of squared differences."""
    return float(sum(np.square(a.astype(np.float64) - b).sum() for a, b in zip(left, right)))


def values(net: paddle.nn.Layer) -> dict[str, np.ndarray]:
    """Copies of all parameters, running statistics included."""
    return {name: parameter.numpy().copy() for name, parameter in net.named_parameters()}


def changed(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> Iterator[str]:
    """Names of the parameters that differ."""
    for name, value in before.items():
        if value.shape != after[name].shape or not np.array_equal(value, after[name]):
            yield name
