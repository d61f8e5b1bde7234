"""Small programs around one convolution, run by Paddle Inference as exported models are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle.base.layer_helper import LayerHelper
from paddle.static import InputSpec

from slim_det.graph.engine import Engine
from slim_det.graph.tracing import deployment_program
from slim_det.planning.profile.shapes import ConvShape

FEED_CHANNELS = 16
PLAIN_CHANNELS = 4
MIN_COPIES = 2
MAX_COPIES = 8
MACS_WANTED = 25_000_000

Runner = Callable[[], object]
"""Runs a program once."""


def copies(shape: ConvShape) -> int:
    """How many copies of the convolution a program holds: more of a small one."""
    return int(np.clip(MACS_WANTED // max(1, shape.macs), MIN_COPIES, MAX_COPIES))


def conv_runner(shape: ConvShape, threads: int) -> Runner:
    """A program with `copies` of a convolution side by side, each with weights of its own."""
    return _runner(_Branches(shape, copies(shape)), _feed_shape(shape), threads)


def empty_runner(shape: ConvShape, threads: int) -> Runner:
    """The program of `conv_runner` without the convolutions, whose time is subtracted."""
    return _runner(_Branches(shape, 0), _feed_shape(shape), threads)


def surroundings(shape: ConvShape) -> tuple[int, int, int]:
    """What an empty program depends on: input channels, height and width."""
    return shape.in_channels, shape.height, shape.width


class _Branches(paddle.nn.Layer):
    """Feed, a narrow 1x1 convolution, then copies of the convolution on its output.

    The 1x1 convolution gives the data the engine's own layout, as the layer before does in a
    network; the first layer of a network, with its few channels, reads the plain image. The
    program returns only the shape of each output, which costs nothing and keeps the convolution.
    """

    def __init__(self, shape: ConvShape, count: int) -> None:
        super().__init__()
        self.before = None
        if shape.in_channels > PLAIN_CHANNELS:
            self.before = _convolution(
                ConvShape(FEED_CHANNELS, shape.in_channels, shape.height, shape.width, 1)
            )
        self.convs = paddle.nn.LayerList(_convolution(shape) for _ in range(count))
        self.act = shape.act
        self.scale = self.create_parameter([1])  # the engine loads no program without parameters

    @paddle.jit.not_to_static  # it holds nothing to rewrite, and rewriting takes half the time
    def forward(self, x: Any) -> list[Any]:
        if self.before is not None:
            x = self.before(x)
        outputs = [paddle.shape(x), paddle.shape(self.scale)]
        for conv in self.convs:
            y = conv(x)
            outputs.append(paddle.shape(_activated(y, self.act) if self.act else y))
        return outputs


def _convolution(shape: ConvShape) -> paddle.nn.Layer:
    """With batch norm, which the engine folds into it."""
    conv = paddle.nn.Conv2D(
        shape.in_channels,
        shape.out_channels,
        shape.kernel,
        stride=shape.stride,
        padding=shape.padding,
        dilation=shape.dilation,
        groups=shape.groups,
        bias_attr=False,
    )
    return paddle.nn.Sequential(conv, paddle.nn.BatchNorm2D(shape.out_channels))


def _activated(x: Any, act: str) -> Any:
    helper = LayerHelper(act)
    out = helper.create_variable_for_type_inference(x.dtype)
    helper.append_op(type=act, inputs={"X": x}, outputs={"Out": out})
    return out


def _feed_shape(shape: ConvShape) -> tuple[int, int, int, int]:
    plain = shape.in_channels <= PLAIN_CHANNELS
    return 1, shape.in_channels if plain else FEED_CHANNELS, shape.height, shape.width


def _runner(layer: paddle.nn.Layer, feed_shape: tuple[int, ...], threads: int) -> Runner:
    layer.eval()

    def save(stem: Path) -> None:
        spec = [InputSpec(list(feed_shape), "float32", "x")]
        with deployment_program():
            function = paddle.jit.to_static(layer.forward, input_spec=spec, full_graph=True)
            paddle.jit.save(function, str(stem))

    image = np.random.default_rng(0).normal(size=feed_shape)
    return Engine.of(save, threads=threads).prepared({"x": image})
