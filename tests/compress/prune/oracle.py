"""A pruned network against the unpruned one with the same channels forced to zero.

Which channels these are is read from the plan's kept indices of every layer's own output
channels and from nothing else; what that means for other layers is for slim_det to get right.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import paddle

from slim_det.compress.prune.plan import Plan
from tests.compress.prune.random_nets import OUTPUT_AXIS, RandomNet

TOLERANCE = 1e-9
FLOOR = 1e-3
"""Differences are relative to the largest value; below this size they are absolute."""


@dataclass
class Both:
    """The unpruned network with its masks, and the pruned one."""

    unpruned: RandomNet
    pruned: RandomNet
    plan: Plan

    @property
    def masks(self) -> dict[str, np.ndarray]:
        """Weight name -> 1 where the output channel stays."""
        masks = {}
        for number, (kind, _, _) in enumerate(self.unpruned.ops):
            name, axis = f"{kind}{number}.weight", OUTPUT_AXIS.get(kind, 0)
            if kind in OUTPUT_AXIS and axis in self.plan.slices.get(name, {}):
                mask = np.zeros(self.plan.tensors[name][axis])
                mask[self.plan.slices[name][axis]] = 1.0
                masks[name] = mask
        return masks

    def check_outputs(self, image: np.ndarray) -> None:
        """Outputs agree on an image, in the mode that both are in."""
        left = self.pruned.run(paddle.to_tensor(image))
        right = self.unpruned.run(paddle.to_tensor(image), self.masks)
        assert len(left) == len(right)
        for number, (a, b) in enumerate(zip(left, right)):
            assert_close(a.numpy(), b.numpy(), f"output {number}")

    def check_gradients(self, image: np.ndarray, seed: int) -> None:
        """Gradients agree at what was kept, and nothing flows to what was removed."""
        left = _gradients(self.pruned, image, seed, None)
        right = _gradients(self.unpruned, image, seed, self.masks)
        assert left.keys() == right.keys()
        for name, gradient in right.items():
            assert_close(left[name], self.plan.slice(name, gradient), f"gradient of {name}")
            axes = self.plan.slices.get(name, {})
            kept = [axes.get(axis, np.arange(n)) for axis, n in enumerate(gradient.shape)]
            gradient[np.ix_(*kept)] = 0.0
            assert not gradient.any(), f"gradient of {name} at removed channels"

    def check_running_statistics(self) -> None:
        """What batch norm gathered in training mode agrees as well."""
        left = dict(self.pruned.named_parameters())
        for name, param in self.unpruned.named_parameters():
            if name.endswith(("_mean", "_variance")):
                assert_close(left[name].numpy(), self.plan.slice(name, param.numpy()), name)


def assert_close(left: np.ndarray, right: np.ndarray, what: str) -> None:
    """Equal shapes, and values within the tolerance."""
    assert left.shape == right.shape, what
    if left.size:
        difference = np.abs(left - right).max()
        assert difference <= TOLERANCE * max(np.abs(right).max(), FLOOR), f"{what}: {difference}"


def _gradients(
    net: RandomNet, image: np.ndarray, seed: int, masks: dict[str, np.ndarray] | None
) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    outputs = net.run(paddle.to_tensor(image), masks)
    loss = sum((out * paddle.to_tensor(rng.normal(size=out.shape))).sum() for out in outputs)
    net.clear_gradients()
    loss.backward()
    return {
        name: np.zeros(param.shape) if param.grad is None else param.grad.numpy()
        for name, param in net.named_parameters()
        if not param.stop_gradient
    }
