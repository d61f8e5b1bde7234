"""Random small networks, each from a seed, as the plain lists that `RandomNet` runs.

A network is a few *motifs* (a residual block, a gate, ...) put behind one another, every one on
a tensor that is still open; what is open at the end gets a head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tests.compress.prune.graph_builder import KEEPS_ZERO, MAX_SIZE, MIN_SIZE, Builder, Graph


def conv(b: Builder, x: int) -> list[int]:
    return [b.conv(x, stride=b.pick([1, 2]) if b.shrinks(x) else 1)]


def depthwise(b: Builder, x: int) -> list[int]:
    if b.shapes[x][0] == 1:
        x = b.conv(x)  # of a single channel, depthwise is an ordinary convolution
    channels, height, width = b.shapes[x]
    multiplier = b.pick([1, 1, 2])
    settings = {"bias": b.pick([True, False]), "bn": b.pick([True, False])}
    shape = (channels * multiplier, height, width)
    y = b.add(
        "depthwise", x, shape=shape, inside=channels, multiplier=multiplier,
        act=b.pick(["", *KEEPS_ZERO]), **settings,
    )  # fmt: skip
    return [b.conv(y) if b.rng.random() < 0.5 else y]


def grouped_conv(b: Builder, x: int) -> list[int]:
    groups = b.pick([2, 3])
    y = b.conv(x, groups * b.integer(2, 4))
    return [b.conv(y, groups * b.integer(1, 4), groups=groups)]


def shared_conv(b: Builder, x: int) -> list[int]:
    """The same weights for two tensors; one of them is the image now and then."""
    first = b.image if b.rng.random() < 0.3 else b.conv(x)
    channels = b.shapes[first][0]
    y = b.conv(first, channels if b.rng.random() < 0.5 else 0)
    settings = {**b.graph.ops[y][2], "same_as": y}
    other = y if b.shapes[y][0] == channels else b.conv(x, channels)
    shape = (b.shapes[y][0], *b.shapes[other][1:])
    return [b.add("conv", other, shape=shape, **settings), y]


def transposed_conv(b: Builder, x: int) -> list[int]:
    inside, height, width = b.shapes[x]
    if 2 * max(height, width) > MAX_SIZE:
        x = b.add("avg_pool", x, shape=(inside, height // 2, width // 2), kernel=2, stride=2,
                  padding=0)  # fmt: skip
    inside, height, width = b.shapes[x]
    out, bn = b.integer(2, 8), b.pick([True, False])
    return [
        b.add(
            "deconv",
            x,
            shape=(out, 2 * height, 2 * width),
            inside=inside,
            out=out,
            bias=b.pick([True, False]),
            bn=bn,
            act=b.pick(["", *KEEPS_ZERO]),
        )  # fmt: skip
    ]


def depthwise_transposed_conv(b: Builder, x: int) -> list[int]:
    """Enlarges every channel for itself, as CenterNet's neck does."""
    channels, height, width = b.shapes[x]
    if channels == 1 or 2 * max(height, width) > MAX_SIZE:
        return [b.conv(x)]
    y = b.add(
        "depthwise_deconv", x, shape=(channels, 2 * height, 2 * width), inside=channels,
        multiplier=1, bias=b.pick([True, False]), bn=b.pick([True, False]),
        act=b.pick(["", *KEEPS_ZERO]),
    )  # fmt: skip
    return [b.conv(y) if b.rng.random() < 0.5 else y]


def batch_norm(b: Builder, x: int) -> list[int]:
    """Batch norm of its own, as in networks that normalize before the convolution."""
    return [b.same("bn", x, inside=b.shapes[x][0], act=b.pick(["", *KEEPS_ZERO]))]


def group_norm(b: Builder, x: int) -> list[int]:
    """A mean and a variance for every few channels, as in the heads of FCOS and GFL."""
    groups = b.pick([2, 3])
    if b.shapes[x][0] % groups or b.rng.random() < 0.5:
        x = b.conv(x, groups * b.integer(1, 4))
    return [b.same("group_norm", x, inside=b.shapes[x][0], groups=groups, act=b.pick(KEEPS_ZERO))]


def activation(b: Builder, x: int) -> list[int]:
    if b.rng.random() < 0.3:
        return [b.same("prelu", x, inside=b.shapes[x][0])]
    return [b.act(x)]


def squeeze_excitation(b: Builder, x: int) -> list[int]:
    channels = b.shapes[x][0]
    y = b.add("global_pool", x, shape=(channels, 1, 1))
    y = b.conv(y, b.integer(2, 6), kernel=1, bn=False, bias=True, act="relu")
    y = b.conv(y, channels, kernel=1, bn=False, bias=True, act="")
    return [b.same("mul", x, b.act(y, "hard_sigmoid"))]


def sigmoid_before_conv(b: Builder, x: int) -> list[int]:
    return [b.conv(b.act(b.conv(x), b.pick(["sigmoid", "hard_sigmoid"])))]


def gate(b: Builder, x: int) -> list[int]:
    """A product with a sigmoid of as many channels, or of a single one."""
    y = b.conv(x, b.pick([1, b.shapes[x][0]]), act="")
    y = b.act(y, "sigmoid") if b.rng.random() < 0.6 else y
    return [b.conv(b.same(b.pick(["mul", "mul", "add"]), x, y))]


def sigmoid_times_one_channel(b: Builder, x: int) -> list[int]:
    left, right = b.act(x, "sigmoid"), b.conv(x, 1)
    return [b.conv(b.same("mul", left, right))]


def residual(b: Builder, x: int) -> list[int]:
    channels = b.shapes[x][0]
    for _ in range(b.integer(1, 3)):
        y = b.conv(b.conv(x, b.integer(2, 8)), channels)
        kind = b.pick(["add", "add", "add", "sub", "max"])
        x = b.act(b.same(kind, *b.pick([(x, y), (y, x)])))
    return [x]


def concat_several(b: Builder, x: int) -> list[int]:
    branches = [b.conv(x, b.integer(2, 6)) for _ in range(b.integer(1, 3))]
    branches += [x] if b.rng.random() < 0.5 or len(branches) == 1 else []
    if b.rng.random() < 0.2:
        branches[0] = b.act(branches[0], "sigmoid")
    return [b.concat(*branches)]


def concat_repeated(b: Builder, x: int) -> list[int]:
    return [b.concat(*b.pick([(x, x), (x, b.conv(x), x), (x, x, x)]))]


def concat_added(b: Builder, x: int) -> list[int]:
    """A layer beside two that share its channels; one of these may hold very few."""
    left, right = b.conv(x, b.pick([1, 1, 2, 4])), b.conv(x, b.integer(2, 6))
    y = b.conv(x, b.shapes[left][0] + b.shapes[right][0])
    return [b.same("add", *b.pick([(b.concat(left, right), y), (y, b.concat(left, right))]))]


def concat_image(b: Builder, x: int) -> list[int]:
    shape = (b.shapes[b.image][0], *b.shapes[x][1:])
    y = b.concat(x, b.add("like", b.image, x, shape=shape))
    if b.shapes[y][0] in (4, 6, 8, 10, 12) and b.rng.random() < 0.5:
        return [b.conv(y, 4, groups=2)]
    if b.rng.random() < 0.5:
        return [b.same("add", b.conv(x, b.shapes[y][0]), y)]
    return [y]


def split_equal(b: Builder, x: int) -> list[int]:
    parts = b.pick([2, 2, 3])
    if b.shapes[x][0] % parts or b.shapes[x][0] == parts:
        x = b.conv(x, parts * b.integer(2, 4))
    width = b.shapes[x][0] // parts
    pieces = b.add("split", x, shape=(), parts=parts)
    shape = (width, *b.shapes[x][1:])
    first, *others = [b.add("part", pieces, shape=shape, index=i) for i in range(parts)]
    how = b.integer(0, 3)
    if how == 0:
        return [b.same("mul", first, b.act(others[0], "sigmoid")), *others[1:]]
    if how == 1:
        return [b.concat(b.conv(first), *others)]
    if how == 2:
        return [b.concat(*others, first)]
    return [b.same("add", first, b.conv(others[0], width)), *others[1:]]


def split_sections(b: Builder, x: int) -> list[int]:
    """Channel numbers that the network's code holds: nothing of it can be cut."""
    if b.shapes[x][0] < 3:
        x = b.conv(x, b.integer(3, 8))
    channels, height, width = b.shapes[x]
    first = b.integer(1, channels - 1)
    if b.rng.random() < 0.5:
        y = b.add("channels", x, shape=(first, height, width), start=0, stop=first)
        return [b.conv(y), b.concat(y, b.conv(x, b.integer(2, 5)))]
    pieces = b.add("sections", x, shape=(), sizes=[first, channels - first])
    left = b.add("part", pieces, shape=(first, height, width), index=0)
    right = b.add("part", pieces, shape=(channels - first, height, width), index=1)
    return [b.conv(left), right]


def slice_rows(b: Builder, x: int) -> list[int]:
    channels, height, width = b.shapes[x]
    if height <= MIN_SIZE:
        return [b.conv(x)]
    return [b.add("rows", x, shape=(channels, height - 1, width), start=1)]


def upsample(b: Builder, x: int) -> list[int]:
    channels, height, width = b.shapes[x]
    if 2 * max(height, width) > MAX_SIZE:
        x = b.conv(x, channels, stride=2)
    channels, height, width = b.shapes[x]
    mode = b.pick(["nearest", "nearest", "bilinear"])
    return [b.add("upsample", x, shape=(channels, 2 * height, 2 * width), mode=mode)]


def pool(b: Builder, x: int) -> list[int]:
    channels, height, width = b.shapes[x]
    kind = b.pick(["max_pool", "avg_pool"])
    if b.shrinks(x):
        shape = (channels, height // 2, width // 2)
        return [b.add(kind, x, shape=shape, kernel=2, stride=2, padding=0)]
    return [b.same(kind, x, kernel=3, stride=1, padding=1)]


def padding(b: Builder, x: int) -> list[int]:
    channels, height, width = b.shapes[x]
    if max(height, width) + 1 > MAX_SIZE:
        return [b.conv(x)]
    mode, value = b.pick([("constant", 0.0), ("constant", 0.5), ("reflect", 0.0)])
    shape = (channels, height + 1, width + 1)
    return [b.conv(b.add("pad", x, shape=shape, sides=[0, 1, 1, 0], mode=mode, value=value))]


def scaled_and_shifted(b: Builder, x: int) -> list[int]:
    scale, shift = b.pick([(2.0, 0.0), (0.5, 0.0), (1.0, 0.5)])
    return [b.conv(b.same("affine", x, scale=scale, shift=shift))]


def unknown_operator(b: Builder, x: int) -> list[int]:
    return [b.conv(b.same(b.pick(["softmax", "cumsum"]), b.conv(x)))]


def linear_on_pixels(b: Builder, x: int) -> list[int]:
    """A linear layer that reads the channels of every pixel."""
    channels, height, width = b.shapes[x]
    y = b.same("channels_last", x)
    out = b.integer(2, 8)
    y = b.add("linear", y, shape=(out, height, width), inside=channels, out=out,
              bias=b.pick([True, False]), act=b.pick(["", "relu"]))  # fmt: skip
    return [b.same("channels_first", y)]


def squeeze_excitation_with_swish(b: Builder, x: int) -> list[int]:
    channels = b.shapes[x][0]
    y = b.add("global_pool", x, shape=(channels, 1, 1))
    y = b.conv(
        y, b.integer(2, 6), kernel=1, bn=False, bias=True, act=b.pick(["swish", "hard_swish"])
    )
    y = b.conv(y, channels, kernel=1, bn=False, bias=True, act="")
    return [b.same("mul", x, b.act(y, "sigmoid"))]


def effective_squeeze_excitation(b: Builder, x: int) -> list[int]:
    """One layer instead of two, as in PP-YOLOE; its gate may be on a branch of a residual."""
    channels = b.shapes[x][0]
    branch = b.conv(x, channels) if b.rng.random() < 0.5 else x
    y = b.add("mean_kept", branch, shape=(channels, 1, 1))
    y = b.conv(y, channels, kernel=1, bn=b.rng.random() < 0.3, bias=True, act="")
    y = b.same("mul", branch, b.act(y, b.pick(["sigmoid", "hard_sigmoid"])))
    return [y if branch == x else b.same("add", x, y)]


def written_activation(b: Builder, x: int) -> list[int]:
    """Swish and hard-swish as a product, as in models that do without the operators."""
    if b.rng.random() < 0.5:
        y = b.act(x, "sigmoid")
    else:
        y = b.act(b.same("affine", x, scale=1.0, shift=3.0), "relu6")
        y = b.same("affine", y, scale=1.0 / 6.0, shift=0.0)
    y = b.same("mul", *b.pick([(x, y), (y, x)]))
    return [b.conv(y) if b.rng.random() < 0.5 else y]


def channel_shuffle(b: Builder, x: int) -> list[int]:
    """A block of ShuffleNet or ESNet: its reshapes hold channel numbers, so nothing can be cut."""
    parts = b.pick([2, 2, 3])
    if b.shapes[x][0] % parts or b.rng.random() < 0.5:
        x = b.conv(x, parts * b.integer(2, 4))
    if b.rng.random() < 0.5:
        width = b.shapes[x][0] // parts
        pieces = b.add("split", x, shape=(), parts=parts)
        shape = (width, *b.shapes[x][1:])
        first, *others = [b.add("part", pieces, shape=shape, index=i) for i in range(parts)]
        x = b.concat(first, *(b.conv(other, width) for other in others))
    return [b.same("shuffle", x, parts=parts)]


Motif = Callable[[Builder, int], list[int]]

MOTIFS: tuple[Motif, ...] = (
    conv, depthwise, grouped_conv, shared_conv, transposed_conv,
    depthwise_transposed_conv, batch_norm, group_norm, activation,
    squeeze_excitation, sigmoid_before_conv, gate, sigmoid_times_one_channel, residual,
    concat_several, concat_repeated, concat_added, concat_image, split_equal, split_sections,
    slice_rows, upsample, pool, padding, scaled_and_shifted, unknown_operator, linear_on_pixels,
)  # fmt: skip
NEWER_MOTIFS: tuple[Motif, ...] = (
    squeeze_excitation_with_swish, effective_squeeze_excitation, written_activation,
    channel_shuffle,
)  # fmt: skip
"""Not among `MOTIFS`, because other tests name networks by seeds that were chosen for them."""

HEADS = ("head_conv", "head_bare", "head_flatten", "head_pooled")


def _head(b: Builder, x: int) -> None:
    """End an open tensor: an output of the network is made of it."""
    kind = b.pick(["head_conv", "head_conv", *HEADS])
    b.graph.features.add(kind)
    channels, *size = b.shapes[x]
    if kind == "head_conv":
        x = b.conv(x, b.integer(2, 5), kernel=1, bn=False, act="")
    elif kind != "head_bare":
        pooled = kind == "head_pooled"
        b.graph.any_size &= pooled
        pixels = 1 if pooled else int(np.prod(size))
        x = b.add("mean" if pooled else "flatten", x, shape=(channels * pixels,), pixels=pixels)
        x = b.linear(b.linear(x, b.integer(2, 8), "relu"), b.integer(2, 5))
    b.same("output", x)


def random_graph(seed: int, motifs: Sequence[Motif] = MOTIFS) -> Graph:
    """Make the network that belongs to a seed; of these motifs, each as likely as the others."""
    b = Builder(seed)
    open_tensors = [b.conv(b.image, b.integer(3, 10))]
    for _ in range(b.integer(3, 6)):
        x = open_tensors.pop(int(b.rng.integers(len(open_tensors))))
        motif = b.pick(motifs)
        open_tensors += motif(b, x)
        b.graph.features.add(motif.__name__)
    for x in open_tensors:
        _head(b, x)
    return b.graph
