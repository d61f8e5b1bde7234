"""The layer that runs a network written as a plain list of operations.

An operation is ``(kind, inputs, settings)``; its inputs are numbers of earlier operations, so
that a printed list is all that is needed to build the network again.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F

Op = tuple[str, tuple[int, ...], dict[str, Any]]

ACTIVATIONS = {
    "relu": F.relu,
    "relu6": F.relu6,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.1),
    "hard_swish": F.hardswish,
    "swish": F.swish,
    # These two are looked up when they run, because a trace replaces them.
    "tanh": lambda x: paddle.tanh(x),
    "sigmoid": lambda x: F.sigmoid(x),
    "hard_sigmoid": F.hardsigmoid,
    "": lambda x: x,
}

WITHOUT_WEIGHTS = {
    "act": lambda x, s: ACTIVATIONS[s["name"]](x[0]),
    "affine": lambda x, s: x[0] * s["scale"] + s["shift"] if s["shift"] else x[0] * s["scale"],
    "add": lambda x, s: x[0] + x[1],
    "sub": lambda x, s: x[0] - x[1],
    "mul": lambda x, s: x[0] * x[1],
    "max": lambda x, s: paddle.maximum(x[0], x[1]),
    "concat": lambda x, s: paddle.concat(x, axis=1),
    "split": lambda x, s: paddle.split(x[0], s["parts"], axis=1),
    "sections": lambda x, s: paddle.split(x[0], s["sizes"], axis=1),
    "part": lambda x, s: x[0][s["index"]],
    "channels": lambda x, s: x[0][:, s["start"] : s["stop"]],
    "rows": lambda x, s: x[0][:, :, s["start"] :],
    "like": lambda x, s: F.interpolate(x[0], size=x[1].shape[2:], mode="nearest"),
    "upsample": lambda x, s: F.interpolate(x[0], scale_factor=2, mode=s["mode"]),
    "max_pool": lambda x, s: F.max_pool2d(x[0], s["kernel"], s["stride"], s["padding"]),
    "avg_pool": lambda x, s: F.avg_pool2d(x[0], s["kernel"], s["stride"], s["padding"]),
    "global_pool": lambda x, s: F.adaptive_avg_pool2d(x[0], 1),
    "pad": lambda x, s: F.pad(x[0], s["sides"], mode=s["mode"], value=s["value"]),
    "flatten": lambda x, s: x[0].flatten(1),
    "mean": lambda x, s: x[0].mean([2, 3]),
    "mean_kept": lambda x, s: x[0].mean([2, 3], keepdim=True),
    "shuffle": lambda x, s: _shuffled(x[0], s["parts"]),
    "channels_last": lambda x, s: x[0].transpose([0, 2, 3, 1]),
    "channels_first": lambda x, s: x[0].transpose([0, 3, 1, 2]),
    "softmax": lambda x, s: F.softmax(x[0], axis=1),
    "cumsum": lambda x, s: paddle.cumsum(x[0], axis=1),
    "output": lambda x, s: x[0],
}

OUTPUT_AXIS = {
    **dict.fromkeys(("conv", "depthwise", "depthwise_deconv", "bn", "group_norm"), 0),
    **dict.fromkeys(("deconv", "linear"), 1),
}
"""Kinds whose output channels a mask is multiplied on, and the axis of their weight."""


class RandomNet(paddle.nn.Layer):
    """Runs a list of operations.

    The layers of operation 3 are `conv3` (or `linear3`, ...) and `conv3_bn`.

    Args:
        ops: The operations; the first is the image.
    """

    def __init__(self, ops: list[Op]) -> None:
        super().__init__()
        self.ops = ops
        for number, (kind, _, settings) in enumerate(ops):
            if kind in (*OUTPUT_AXIS, "prelu") and "same_as" not in settings:
                self.add_sublayer(f"{kind}{number}", _layer(kind, settings))
                if settings.get("bn"):
                    width = settings["inside"] * settings.get("multiplier", 0) or settings["out"]
                    self.add_sublayer(f"{kind}{number}_bn", paddle.nn.BatchNorm2D(width))

    def forward(self, image: paddle.Tensor) -> list[paddle.Tensor]:
        """Return what the `output` operations see."""
        return self.run(image)

    @paddle.jit.not_to_static
    def run(
        self, image: paddle.Tensor, masks: dict[str, np.ndarray] | None = None
    ) -> list[paddle.Tensor]:
        """Run all operations.

        Args:
            image: [N, C, H, W].
            masks: Weight name -> 1 for every output channel that stays, 0 for the others;
                multiplied on after batch norm and activation.
        """
        values: list[Any] = [image]
        for number, (kind, inputs, settings) in list(enumerate(self.ops))[1:]:
            given = [values[i] for i in inputs]
            if kind in WITHOUT_WEIGHTS:
                values.append(WITHOUT_WEIGHTS[kind](given, settings))
                continue
            name = f"{kind}{settings.get('same_as', number)}"
            value = getattr(self, name)(given[0])
            if settings.get("bn"):
                value = getattr(self, f"{name}_bn")(value)
            value = ACTIVATIONS[settings.get("act", "")](value)
            values.append(_masked(value, (masks or {}).get(f"{name}.weight"), kind))
        return [values[n] for n, (kind, _, _) in enumerate(self.ops) if kind == "output"]


def _masked(value: paddle.Tensor, mask: np.ndarray | None, kind: str) -> paddle.Tensor:
    if mask is None:
        return value
    shape = [1] * value.ndim
    shape[-1 if kind == "linear" else 1] = len(mask)
    return value * paddle.to_tensor(mask.reshape(shape).astype("float64"))


def _shuffled(x: paddle.Tensor, parts: int) -> paddle.Tensor:
    """As in ppdet: the first channels of all parts, then the second ones, ..."""
    batch, channels, height, width = x.shape
    x = paddle.reshape(x, [batch, parts, channels // parts, height, width])
    return paddle.reshape(x.transpose([0, 2, 1, 3, 4]), [batch, channels, height, width])


def _layer(kind: str, s: dict[str, Any]) -> paddle.nn.Layer:
    bias = None if s.get("bias") else False
    if kind == "conv":
        padding = s["kernel"] // 2
        return paddle.nn.Conv2D(
            s["inside"], s["out"], s["kernel"], s["stride"], padding,
            groups=s["groups"], bias_attr=bias,
        )  # fmt: skip
    if kind == "depthwise":
        out = s["inside"] * s["multiplier"]
        return paddle.nn.Conv2D(s["inside"], out, 3, padding=1, groups=s["inside"], bias_attr=bias)
    if kind == "depthwise_deconv":
        inside = s["inside"]
        return paddle.nn.Conv2DTranspose(inside, inside, 2, 2, groups=inside, bias_attr=bias)
    if kind == "deconv":
        return paddle.nn.Conv2DTranspose(s["inside"], s["out"], 2, 2, bias_attr=bias)
    if kind == "linear":
        return paddle.nn.Linear(s["inside"], s["out"], bias_attr=bias)
    if kind == "prelu":
        return paddle.nn.PReLU(s["inside"])
    if kind == "group_norm":
        return paddle.nn.GroupNorm(s["groups"], s["inside"])
    return paddle.nn.BatchNorm2D(s["inside"])


def fill(net: paddle.nn.Layer, seed: int) -> None:
    """Give every parameter random values, running statistics included; float64."""
    rng = np.random.default_rng(seed)
    for name, param in net.named_parameters():
        value = rng.normal(size=param.shape)
        if name.endswith("_variance"):
            value = rng.uniform(0.5, 2.0, param.shape)
        elif param.ndim >= 2:
            value /= np.sqrt(np.prod(param.shape) / max(param.shape[:2]))
        elif name.endswith("weight"):
            value = rng.choice([-1.0, 1.0], param.shape) * rng.uniform(0.5, 1.5, param.shape)
        else:
            value *= 0.5
        param.set_value(value)
