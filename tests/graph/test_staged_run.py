"""Programs that run part by part: the values of a direct run, each operator as often as needed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle.static import InputSpec

from slim_det.graph.program import DeployProgram
from slim_det.graph.staged_run import ArrayStore, StagedRun, store_images
from slim_det.graph.trace import layer_program
from tests.support import assert_same_sums

IMAGES = 3
SHAPE = (2, 6, 6)
IN_PLACE = ("feed", "fetch")


class Net(paddle.nn.Layer):
    """A chain with a branch, a constant, and a second input that is read at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.first = paddle.nn.Conv2D(2, 4, 3, padding=1)
        self.second = paddle.nn.Conv2D(4, 4, 3, padding=1)
        self.branch = paddle.nn.Conv2D(4, 2, 1)
        self.last = paddle.nn.Conv2D(4, 2, 1)

    def forward(self, x: paddle.Tensor, y: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
        ones = paddle.full([1, 4, 1, 1], 0.5)
        a = F.relu(self.first(x)) + ones
        b = F.relu(self.second(a))
        return self.last(a + b) * y, self.branch(a) * ones[:, :2]


@pytest.fixture
def program(ppdet_registered: None) -> DeployProgram:
    paddle.seed(0)
    specs = [InputSpec([1, *SHAPE], "float32", "x"), InputSpec([1, 1], "float32", "y")]
    return layer_program(Net(), specs)


def batches(count: int = IMAGES) -> Iterator[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    for number in range(count):
        pixels = rng.normal(size=(1, *SHAPE)).astype(np.float32)
        yield {"x": pixels, "y": np.full((1, 1), number + 1.0, np.float32), "im_id": number}


@pytest.fixture
def staged(program: DeployProgram, tmp_path: Path) -> Callable[..., StagedRun]:
    """Make a run of the program on the images."""

    def make(**settings: Any) -> StagedRun:
        folder = Path(tmp_path / f"images{len(list(tmp_path.iterdir()))}")
        folder.mkdir()
        store, count = store_images(batches(), program.feeds, folder)
        assert count == IMAGES
        work = folder / "work"
        work.mkdir()
        return StagedRun(program, store, count, work, threads=1, **settings)

    return make


def results(program: DeployProgram, kind: str = "conv2d") -> list[str]:
    """Variables that operators of a kind write, in order."""
    return [op.output("Output") or op.output() for op in program.ops if op.type == kind]


def direct(program: DeployProgram, names: list[str]) -> list[dict[str, np.ndarray]]:
    """Everything at once, without kept files."""
    engine = program.engine(None, names, threads=1)
    return [engine(batch) for batch in batches()]


def assert_equal(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """The engine may fuse operators in another way if it has other outputs: rounding of sums."""
    assert len(found) == len(expected) == IMAGES
    for left, right in zip(found, expected):
        for name, value in left.items():
            assert_same_sums(value, right[name], name)


class Ran:
    """Counts how often each operator is part of an engine that a run makes."""

    def __init__(self, program: DeployProgram, patch: pytest.MonkeyPatch) -> None:
        self.times: Counter[str] = Counter()
        self._make = program.engine
        self._program = program
        patch.setattr(program, "engine", self._engine)

    def _engine(self, feeds: list[str], fetches: list[str], *rest: Any, **more: Any) -> Any:
        missing = set(fetches) - set(feeds)
        for op in reversed(self._program.ops):
            if op.type not in IN_PLACE and missing.intersection(op.output_arg_names):
                missing |= set(op.input_arg_names) - set(feeds)
                self.times[op.output_arg_names[0]] += 1
        return self._make(feeds, fetches, *rest, **more)


@pytest.fixture
def ran(program: DeployProgram, monkeypatch: pytest.MonkeyPatch) -> Ran:
    return Ran(program, monkeypatch)


def test_an_empty_store(tmp_path: Path) -> None:
    store, count = store_images(iter(()), ["x"], tmp_path)
    assert count == 0
    store.drop("x")
    assert not list(tmp_path.iterdir())


def test_what_is_stored_comes_back(tmp_path: Path) -> None:
    """Types and shapes included, which may differ from image to image."""
    arrays = [
        np.arange(6, dtype=np.float32).reshape(1, 2, 3),
        np.array([[7]], np.int64),
        np.zeros((1, 0, 2), np.float32),
        np.float32(2.5).reshape(()),
    ]
    store = ArrayStore(tmp_path)
    store.create("a")
    store.create("b")
    for array in arrays:
        store.append("a", array)
        store.append("b", -array)
    for index in (3, 0, 2, 1):
        found = store.read("a", index)
        assert (found.dtype, found.shape) == (arrays[index].dtype, arrays[index].shape)
        assert np.array_equal(found, arrays[index])
        assert np.array_equal(store.read("b", index), -arrays[index])
    store.drop("a")
    assert len(list(tmp_path.iterdir())) == 1
    store.create("a")
    store.append("a", arrays[1])
    assert store.read("a", 0).item() == 7


def test_one_stage(staged: Callable[..., StagedRun], program: DeployProgram) -> None:
    names = results(program)
    assert_equal(list(staged().arrays(names)), direct(program, names))


def test_names_of_inputs_and_repeated_names(
    staged: Callable[..., StagedRun], program: DeployProgram
) -> None:
    """Inputs come from their files, and no engine is needed for them alone."""
    found = list(staged().arrays(["x", "x"]))
    assert all(list(one) == ["x"] for one in found)
    for one, batch in zip(found, batches()):
        assert np.array_equal(one["x"], batch["x"])
    first = results(program)[0]
    both = list(staged().arrays([first, "y", first]))
    assert all(list(one) == [first, "y"] for one in both)
    assert [one["y"].item() for one in both] == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("limit_mb", [float("inf"), 0.0])
def test_stage_by_stage(
    staged: Callable[..., StagedRun], program: DeployProgram, limit_mb: float
) -> None:
    """In order, the values of a direct run; two outputs at once, and one of an earlier stage."""
    names = [*results(program), *program.fetches]
    expected = direct(program, names)
    run = staged(limit_mb=limit_mb)
    for stage in ([names[0]], [names[1]], names[2:4], [names[4], "x"], names[5:]):
        found = list(run.arrays(stage))
        assert_equal([{n: one[n] for n in stage if n != "x"} for one in found], expected)


def test_each_operator_runs_once(
    staged: Callable[..., StagedRun], program: DeployProgram, ran: Ran
) -> None:
    run = staged()
    for name in [*results(program), *program.fetches]:
        list(run.arrays([name]))
    on_images = {
        op.output_arg_names[0]
        for op in program.downstream(program.feeds)
        if op.type not in IN_PLACE
    }
    assert {ran.times[name] for name in on_images} == {1}


def test_nothing_is_kept(
    staged: Callable[..., StagedRun], program: DeployProgram, ran: Ran
) -> None:
    """Without room, each stage runs from the images."""
    run = staged(limit_mb=0.0)
    first, *others = results(program)
    for name in (first, *others):
        list(run.arrays([name]))
    assert ran.times[first] == 1 + len(others)


def test_the_limit_is_what_is_kept(
    staged: Callable[..., StagedRun], program: DeployProgram, ran: Ran
) -> None:
    """After the first convolution only its result is kept: 4 x 6 x 6 floats for 3 images.

    The other input is stored anyway.
    """
    first, second = results(program)[:2]
    needed = IMAGES * 4 * 6 * 6 * 4 / 1e6
    for limit, times in ((needed, 1), (needed * 0.99, 2)):
        ran.times.clear()
        run = staged(limit_mb=limit)
        list(run.arrays([first]))
        list(run.arrays([second]))
        assert ran.times[first] == times


@pytest.mark.parametrize("limit_mb", [float("inf"), 0.0])
def test_a_weight_that_changes_between(
    staged: Callable[..., StagedRun], program: DeployProgram, limit_mb: float
) -> None:
    """Later stages use it; what depends on it comes out as in a program that always had it."""
    first, second = results(program)[:2]
    run = staged(limit_mb=limit_mb)
    list(run.arrays(["x"]))
    before = direct(program, [first])
    weight = next(op for op in program.ops if op.output("Output") == first).input("Filter")
    program.set_value(weight, 3 * program.value(weight))
    after = direct(program, [first, second, *program.fetches])
    assert np.abs(after[0][first] - before[0][first]).max() > 0.1
    for name in (first, second, *program.fetches):
        assert_equal(list(run.arrays([name])), after)


def test_an_unfinished_stage_changes_nothing(
    staged: Callable[..., StagedRun], program: DeployProgram
) -> None:
    """Whoever stops after the first image may ask again."""
    first, second = results(program)[:2]
    run = staged()
    next(run.arrays([first]))
    assert_equal(list(run.arrays([first])), direct(program, [first]))
    next(run.arrays([second]))
    assert_equal(list(run.arrays([second])), direct(program, [second]))


def test_files_are_removed(
    staged: Callable[..., StagedRun], program: DeployProgram, tmp_path: Path
) -> None:
    """Only what later operators read is on disk, and nothing after the last stage."""
    run = staged()
    (work,) = tmp_path.glob("*/work")
    sizes = []
    for name in [*results(program), *program.fetches]:
        list(run.arrays([name]))
        sizes.append([path.stat().st_size for path in work.iterdir()])
    pixels = IMAGES * 6 * 6 * 4
    assert sizes[0] == [4 * pixels]
    assert sizes[-1] == []
    assert all(sum(one) <= 3 * 4 * pixels for one in sizes)


class Shared(paddle.nn.Layer):
    """The same convolution and batch norm twice in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = paddle.nn.Conv2D(2, 2, 3, padding=1), paddle.nn.BatchNorm2D(2)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return F.tanh(self.bn(self.conv(F.relu(self.bn(self.conv(x))))))


def test_a_batch_norm_that_is_used_twice(tmp_path: Path, ppdet_registered: None) -> None:
    """Its second use is not taken for something that depends on the first; no weight is kept."""
    paddle.seed(0)
    net = Shared()
    net.bn._mean.set_value(np.array([0.5, -0.25], np.float32))
    program = layer_program(net, [InputSpec([1, *SHAPE], "float32", "x")])
    names = [*results(program, "relu"), *results(program, "tanh")]
    expected = direct(program, names)
    (tmp_path / "images").mkdir()
    store, count = store_images(batches(), ["x"], tmp_path / "images")
    run = StagedRun(program, store, count, tmp_path, threads=1)
    for name in names:
        assert_equal(list(run.arrays([name])), expected)
        files = [path for path in tmp_path.iterdir() if path.is_file()]
        assert sum(path.stat().st_size for path in files) <= IMAGES * 2 * 6 * 6 * 4
    assert program.value(_statistics(program)).tolist() == [0.5, -0.25]


def _statistics(program: DeployProgram) -> str:
    return next(op.input("Mean") for op in program.ops if op.type == "batch_norm")


def test_images_of_other_kinds(program: DeployProgram, tmp_path: Path) -> None:
    """Batches of ppdet hold tensors, and more than the program reads."""
    given = ({name: paddle.to_tensor(value) for name, value in one.items()} for one in batches())
    store, count = store_images(given, program.feeds, tmp_path)
    assert count == IMAGES
    for index, batch in enumerate(batches()):
        assert np.array_equal(store.read("x", index), batch["x"])
    with pytest.raises(KeyError):
        store.read("im_id", 0)
