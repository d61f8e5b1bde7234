"""What taps keep of a forward, and that they leave nothing behind."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from paddle import nn

from slim_det.compress.distill.taps import Place, Taps, count_tensors, dry_run, find_layer
from slim_det.core.errors import LayerError, TrainingError
from tests.compress.distill.tiny_detectors import arrays, same, tiny_detector


class Chain(nn.Layer):
    """x -> 2x -> 2x + 10, and parts that are run twice, never, or give two tensors or none."""

    def __init__(self) -> None:
        super().__init__()
        self.times, self.add = nn.Linear(1, 1), nn.Linear(1, 1)
        self.twice, self.never = nn.Linear(1, 1), nn.Linear(1, 1)
        self.both, self.words = Both(), Words()
        self.times.weight.set_value(np.array([[2.0]], "float32"))
        self.twice.weight.set_value(np.array([[3.0]], "float32"))
        self.add.weight.set_value(np.array([[1.0]], "float32"))
        self.add.bias.set_value(np.array([10.0], "float32"))

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        x = self.add(self.times(x))
        self.twice(self.twice(x))
        self.both(x)
        self.words(x)
        return x


class Both(nn.Layer):
    def forward(self, x: paddle.Tensor) -> list[paddle.Tensor]:
        return [x, x + 1.0]


class Words(nn.Layer):
    def forward(self, x: paddle.Tensor) -> str:
        return "no tensor"


def number(value: float) -> paddle.Tensor:
    return paddle.to_tensor([[value]])


def hooks(model: nn.Layer) -> int:
    layers = model.sublayers(include_self=True)
    return sum(len(x._forward_post_hooks) + len(x._forward_pre_hooks) for x in layers)


def test_no_places_keep_nothing() -> None:
    taps = Taps(Chain(), [])
    with taps.attached():
        taps.open()
        taps.model(number(1.0))
        assert taps.take() == {}


def test_output_and_flow_of_the_last_forward() -> None:
    taps = Taps(Chain(), [Place("times"), Place("add", "flow"), Place("times")])
    with taps.attached():
        for value in (1.0, 3.0):
            taps.open()
            taps.model(number(value))
        kept = taps.take()
    assert kept[Place("times")].item() == 6.0
    taken, given = kept[Place("add", "flow")]
    assert (taken.item(), given.item()) == (6.0, 16.0)
    assert not kept[Place("times")].stop_gradient


def test_taking_empties_and_closes() -> None:
    taps = Taps(Chain(), [Place("times")])
    with taps.attached():
        taps.open()
        taps.model(number(1.0))
        taps.take()
        taps.model(number(1.0))
        with pytest.raises(TrainingError, match="gave 0 tensors"):
            taps.take()


def test_closed_taps_keep_nothing() -> None:
    taps = Taps(Chain(), [Place("times")])
    with taps.attached():
        taps.model(number(1.0))
        assert not any(taps.kept.values())


@pytest.mark.parametrize(("layer", "given"), [("twice", 2), ("never", 0), ("both", 2)])
def test_a_layer_has_to_give_the_expected_number(layer: str, given: int) -> None:
    taps = Taps(Chain(), [Place(layer)])
    with taps.attached():
        taps.open()
        taps.model(number(1.0))
        with pytest.raises(
            TrainingError, match=f"'{layer}' of Chain gave {given} tensors"
        ) as error:
            taps.take()
    assert "\n" not in str(error.value)


def test_tensors_of_a_layer_are_numbered() -> None:
    """x = 1: calls in order, of which each triples, and items in order."""
    model = Chain()
    twice = [Place("twice", item=item, of=2) for item in (0, 1)]
    both = [Place("both", item=item, of=2) for item in (1, 0)]
    taps = Taps(model, [*twice, *both])
    with taps.attached():
        taps.open()
        model(number(1.0))
        kept = taps.take()
    assert [kept[place].item() for place in twice] == [36.0, 108.0]
    assert [kept[place].item() for place in both] == [13.0, 12.0]


def test_counted_tensors() -> None:
    model = tiny_detector(0)
    places = [Place("neck", of=0), Place("neck.tips.0", "flow", of=0), Place("backbone", of=0)]
    assert count_tensors(model, places, (64, 64)) == dict(zip(places, [2, 1, 1]))
    assert count_tensors(model, [], (64, 64)) == {}
    assert hooks(model) == 1  # its own counter


def test_a_run_ends_at_the_last_place() -> None:
    model = Chain()
    model.both.register_forward_pre_hook(lambda *_: pytest.fail("runs further"))
    place = Place("twice", item=0, of=2)
    taps = Taps(model, [place])
    with taps.attached():
        assert taps.run(number(1.0))[place].item() == 36.0
        with pytest.raises(pytest.fail.Exception):
            model(number(1.0))


def test_a_layer_has_to_give_tensors() -> None:
    taps = Taps(Chain(), [Place("words")])
    with taps.attached():
        taps.open()
        with pytest.raises(LayerError, match="output of layer 'words' is a str, expected a tensor"):
            taps.model(number(1.0))


def test_detached_taps_leave_the_model_as_it_was() -> None:
    model = Chain()
    names = set(vars(model.times))
    taps = Taps(model, [Place("times"), Place("add", "flow")])
    taps.attach()
    taps.attach()
    assert hooks(model) == 2
    assert set(vars(model.times)) == names
    taps.detach()
    assert hooks(model) == 0
    assert set(vars(model.times)) == names


def test_an_unknown_path_is_refused() -> None:
    with pytest.raises(LayerError, match="'triple' is not a module of Chain"):
        Taps(Chain(), [Place("triple")])


@pytest.mark.parametrize(
    ("spelling", "path"),
    [
        ("neck.tips.0", "neck.tips.0"),
        ("neck", "neck"),
        ("neck.tips.0.weight", "neck.tips.0"),
        ("backbone.conv", "backbone.conv"),
        ("yolo_output.1", "yolo_head.yolo_output.1"),
        ("yolo_output.1.conv.weights", "yolo_head.yolo_output.1"),
    ],
)
def test_a_layer_by_any_name(spelling: str, path: str) -> None:
    assert find_layer(tiny_detector(0), spelling) == path


def test_a_convolution_means_its_block_too() -> None:
    """The path of a weight gives the shortest path with this weight alone."""
    block = nn.Sequential(("conv", nn.Conv2D(1, 1, 1)), ("bn", nn.BatchNorm2D(1)))
    model = nn.Sequential(("block", block), ("last", nn.Conv2D(1, 1, 1)))
    assert find_layer(model, "block.conv.weight") == "block"
    assert find_layer(model, "block.conv") == "block.conv"
    assert find_layer(model, block.conv.weight.name) == "block"


@pytest.mark.parametrize(
    ("spelling", "message"),
    [("neck.tips.*", "names 2 layers"), ("neck.tipz.0", "did you mean 'neck.tips.0'")],
)
def test_names_of_no_single_layer(spelling: str, message: str) -> None:
    with pytest.raises(LayerError, match=message):
        find_layer(tiny_detector(0), spelling)


def test_a_dry_run_changes_nothing() -> None:
    model = tiny_detector(0)
    model.train()
    model.neck.eval()
    before = arrays(model)
    modes = [layer.training for layer in model.sublayers(include_self=True)]
    kept = dry_run(Taps(model, [Place("neck.tips.1", "flow")]), (64, 32))
    taken, given = kept[Place("neck.tips.1", "flow")]
    assert taken.shape == given.shape == [1, 4, 4, 2]
    assert given.stop_gradient
    assert same(before, arrays(model))
    assert modes == [layer.training for layer in model.sublayers(include_self=True)]
    assert hooks(model) == 1  # its own counter
