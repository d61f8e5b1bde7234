"""Cuts that learn from images: in steps, again, and beside weights that have had one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from paddle.utils import unique_name

from slim_det.compress.prune import iterative
from slim_det.compress.prune.plan import Plan, apply_plan, plan_of
from slim_det.compress.prune.pruner import Pruner
from slim_det.compress.prune.reconstruct import reconstruction as reconstruction_module
from slim_det.compress.strategy import Context
from slim_det.core.errors import ConfigError, PlanError
from slim_det.graph.trace import trace_detector
from slim_det.training import checkpoint
from slim_det.verify.masked import expand_weights, zero_removed_channels
from tests.compress.prune.reconstruct.nets import drawn_images, squared_error, values
from tests.compress.prune.small_net import SmallNet
from tests.compress.prune.test_iterative import RATIOS, WIDTHS, FakeTrainer
from tests.support import assert_same_sums

IMAGES = drawn_images(6)
CFG: dict[str, Any] = {"TestReader": {}}
FROM_IMAGES = {"criterion": "elimination", "repair": "least_squares"}
HALF = {"pruned_ratios": {"inner": 0.5}}
THIRD = {"pruned_ratios": {"inner": 1 / 3}, "again": True}
PURPOSES: tuple[Any, ...] = ("train", "resume", "use", "calibrate")


class Detector(SmallNet):
    """Takes what a detector of ppdet takes, and reads all of it where it gets all of it."""

    def forward(self, inputs: dict[str, paddle.Tensor]) -> Any:
        x = self.computed(inputs["image"])
        return (x, inputs["im_shape"] / inputs["scale_factor"]) if len(inputs) > 1 else x

    def computed(self, x: paddle.Tensor) -> paddle.Tensor:
        return SmallNet.forward(self, x)


class Linear(Detector):
    """No activation: all channels are linear in the three numbers of a pixel."""

    def __init__(self) -> None:
        paddle.nn.Layer.__init__(self)
        self.stem, self.inner = paddle.nn.Conv2D(3, 8, 1), paddle.nn.Conv2D(8, 12, 1)
        self.bn, self.head = paddle.nn.BatchNorm2D(12), paddle.nn.Conv2D(12, 4, 1)

    def computed(self, x: paddle.Tensor) -> paddle.Tensor:
        return self.head(self.bn(self.inner(self.stem(x))))


@pytest.fixture(autouse=True)
def _images(fresh_config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn images stand for a data set, and ppdet builds our small detector."""
    names = [str(number) for number in range(len(IMAGES))]
    sizes = {"im_shape": np.full((1, 2), 8, "float32"), "scale_factor": np.ones((1, 2), "float32")}
    monkeypatch.setattr(iterative, "build_detector", lambda cfg: detector())
    monkeypatch.setattr(
        reconstruction_module, "unlabelled_images", lambda most, folder: ("drawn", names[:most])
    )
    monkeypatch.setattr(
        reconstruction_module,
        "image_batches",
        lambda cfg, paths: ((path, {"image": IMAGES[int(path)], **sizes}) for path in paths),
    )


def detector(kind: Callable[[], paddle.nn.Layer] = Detector) -> paddle.nn.Layer:
    paddle.seed(5)
    with unique_name.guard():
        return kind()


def context(purpose: Any, kind: Callable[[], paddle.nn.Layer] = Detector) -> Context:
    return Context(CFG, (8, 8), purpose, "w", "slim.yml", build_detector=lambda: detector(kind))


def pruned(kind: Callable[[], paddle.nn.Layer] = Detector, **settings: Any) -> paddle.nn.Layer:
    return Pruner(**{**FROM_IMAGES, **HALF, **settings})(detector(kind), context("use", kind))


def adopt(
    net: paddle.nn.Layer, purpose: Any, kind: Callable[[], paddle.nn.Layer] = Detector, **more: Any
) -> Plan:
    plan = plan_of(net)
    assert plan is not None
    Pruner(**{**FROM_IMAGES, **more}).adopt(net, plan, context(purpose, kind))
    return plan_of(net)


def outputs(net: paddle.nn.Layer) -> list[np.ndarray]:
    """For all images, in evaluation mode."""
    net.eval()
    with paddle.no_grad():
        return [net({"image": paddle.to_tensor(image)}).numpy() for image in IMAGES]


def assert_untouched(net: paddle.nn.Layer, before: dict[str, np.ndarray]) -> None:
    for name, value in values(net).items():
        np.testing.assert_array_equal(value, before[name], name)


def assert_equals_masked(net: paddle.nn.Layer) -> None:
    """The pruned network computes what the unpruned one does with the removed channels at zero."""
    plan, unpruned = plan_of(net), detector(type(net))
    expand_weights(unpruned, net, plan)
    zero_removed_channels(unpruned, plan, trace_detector(unpruned, (8, 8)))
    for left, right in zip(outputs(net), outputs(unpruned)):
        assert np.abs(right).max() > 0.01
        assert_same_sums(left, right)


def stepwise(**settings: Any) -> paddle.nn.Layer:
    """A detector after the first of three steps of two epochs."""
    schedule = {"steps": 3, "epochs": 2}
    pruner = Pruner(**{**FROM_IMAGES, "pruned_ratios": RATIOS, **settings}, schedule=schedule)
    return pruner(detector(), context("train"))


def test_each_step_is_repaired(tmp_path: Path) -> None:
    """Every checkpoint has the repair of its last step; resumed, training ends at the same bits."""
    trainer = FakeTrainer(tmp_path / "straight", stepwise(), **CFG)
    trainer.train()
    assert trainer.widths == [width for width in WIDTHS for _ in range(2)]
    stems = [tmp_path / "straight" / "run" / name for name in ("0", "2", "model_final")]
    plans = [Plan.read(f"{stem}.plan.json") for stem in stems]
    assert [plan.steps.done for plan in plans] == [1, 2, 3]
    for plan in plans:
        assert plan.settings["ratios"] == RATIOS
        assert {key: plan.settings[key] for key in FROM_IMAGES} == FROM_IMAGES
        assert plan.repair["images"] == len(IMAGES)
        layers = [one for one in plan.repair["layers"] if not one["note"]]
        assert layers and all(one["after"] < one["before"] for one in layers)
    assert len({json.dumps(plan.repair) for plan in plans}) == 3
    assert_equals_masked(trainer.model)
    model = detector()
    checkpoint.load_weights(model, stems[1])
    resumed = FakeTrainer(tmp_path / "resumed", model, **CFG)
    resumed.resume(stems[1])
    resumed.train()
    assert resumed.start_epoch == 3 and resumed.widths == trainer.widths[3:]
    assert_untouched(resumed.model, values(trainer.model))


def test_a_repaired_step(tmp_path: Path) -> None:
    """It loses less of what the trained model computed than the same cut without a repair.

    The moving average starts again at the repaired weights; without a repair it goes on with what
    is left of it.
    """
    lost, kept = [], []
    for name, repair in (("with", "least_squares"), ("without", None)):
        trainer = FakeTrainer(tmp_path / name, stepwise(repair=None), ema=True, **CFG)
        trainer.train(until=2)
        model, average = trainer.model, trainer.ema.state_dict
        plan_of(model).settings["repair"] = repair
        wanted = outputs(model)
        assert not np.allclose(average["inner.weight"], model.inner.weight)
        trainer.hook.before_train_epoch({"epoch_id": 2})
        lost.append(squared_error(outputs(model), wanted))
        kept.append(plan_of(model).groups)
        assert (plan_of(model).repair is None) == (repair is None)
        parameters = values(model)
        equal = [name for name, v in parameters.items() if np.array_equal(average[name], v)]
        if repair:
            assert equal == list(parameters)
        else:
            assert not {"stem.weight", "inner.weight", "outer.weight"}.intersection(equal)
            assert tuple(average["inner.weight"].shape) == parameters["inner.weight"].shape
    assert kept[0] == kept[1]
    assert lost[0] < 0.9 * lost[1]


def test_a_repair_leaves_the_training_as_it_was(tmp_path: Path) -> None:
    """Its mode, its parameters and both random states, which decide what the next epoch draws."""
    trainer = FakeTrainer(tmp_path, stepwise(), **CFG)
    objects = dict(trainer.model.named_parameters())
    trainer.model.train()
    drawn = []
    for step in (lambda status: None, trainer.hook.before_train_epoch):
        paddle.seed(11)
        np.random.seed(11)
        step({"epoch_id": 2})
        drawn.append([*paddle.rand([4]).tolist(), *np.random.random(4)])
    assert plan_of(trainer.model).steps.done == 2
    assert drawn[0] == drawn[1]
    assert trainer.model.training and trainer.model.bn.training
    assert all(param is objects[name] for name, param in trainer.model.named_parameters())


def test_what_is_left_is_repaired_again(tmp_path: Path) -> None:
    """The plan has the repair of the last cut, also in its file; then it stays as it is."""
    net = pruned()
    first = plan_of(net)
    plan = adopt(net, "train", **THIRD)
    assert set(plan.groups["inner"]["kept"]) < set(first.groups["inner"]["kept"])
    assert [one["weight"] for one in plan.repair["layers"]] == ["outer.weight", "head.weight"]
    assert plan.repair != first.repair
    assert plan.settings["earlier"] == [first.settings]
    assert first.settings["repair"] == "least_squares"
    assert_equals_masked(net)
    (tmp_path / "x.plan.json").write_text(plan.to_json())
    written = Plan.read(tmp_path / "x.plan.json")
    assert (written.repair, written.settings) == (plan.repair, plan.settings)
    for purpose in PURPOSES[1:]:
        assert adopt(net, purpose, **THIRD) is plan
    with pytest.raises(ConfigError, match="'w' was not cut again as slim.yml asks"):
        adopt(net, "resume", **{**THIRD, "repair": None})
    plan = adopt(net, "train", **THIRD, criterion="l1_norm", repair=None)
    assert plan.repair is None, "the last cut was not repaired"
    assert [one["repair"] for one in plan.settings["earlier"]] == ["least_squares"] * 2


def test_linear_channels_are_replaced_twice() -> None:
    """Four of 8 and six of 12 are left, then three and three, which is what a pixel has.

    Of the squares of the outputs 1e-6 is left, for float32 and for a ridge of 1e-8 against
    conditions of some thousands; without a repair the second cut loses much more.
    """
    exactly = {"calibration": {"ridge": 1e-8, "positions": 10**6}}
    again = {"pruned_ratios": {"stem": 0.25, "inner": 0.5}, "again": True}
    wanted = outputs(detector(Linear))
    size = squared_error(wanted, [np.zeros_like(one) for one in wanted])
    net = pruned(Linear, pruned_ratios={"stem": 0.5, "inner": 0.5}, **exactly)
    unrepaired = detector(Linear)
    apply_plan(unrepaired, plan_of(net))
    unrepaired.set_state_dict(net.state_dict())
    assert squared_error(outputs(unrepaired), wanted) < 1e-6 * size
    adopt(net, "train", Linear, **again, **exactly)
    adopt(unrepaired, "train", Linear, **again, criterion="l1_norm", repair=None)
    assert [len(entry["kept"]) for entry in plan_of(net).groups.values()] == [3, 3]
    assert squared_error(outputs(net), wanted) < 1e-6 * size
    assert squared_error(outputs(unrepaired), wanted) > 1e-3 * size
    assert_equals_masked(net)


def test_repaired_weights_are_not_cut_twice() -> None:
    """The same slim file is accepted, with other images as well; nothing is solved for again."""
    net = pruned()
    plan, before = plan_of(net), values(net)
    for purpose in PURPOSES:
        for more in ({}, {"calibration": {"images": 2}}, {"seed": 3}):
            assert adopt(net, purpose, **HALF, **more) is plan
    assert_untouched(net, before)


@pytest.mark.parametrize(
    ("had", "asked"),
    [
        (FROM_IMAGES, {"repair": None}),
        (FROM_IMAGES, {"criterion": "l1_norm"}),
        ({"criterion": "elimination", "repair": None}, {}),
        ({"criterion": "l1_norm", "repair": None}, {"criterion": "l1_norm"}),
    ],
)
def test_another_repair_has_to_be_asked_for(had: dict[str, Any], asked: dict[str, Any]) -> None:
    net = pruned(**had)
    plan, before = plan_of(net), values(net)
    said = f"'w' was already cut, with {had['criterion']}, in another way than slim.yml asks for"
    for purpose in PURPOSES:
        with pytest.raises(PlanError, match=said):
            adopt(net, purpose, **HALF, **asked)
    assert plan_of(net) is plan
    assert_untouched(net, before)


def test_between_two_repaired_steps() -> None:
    """Their own slim file goes on with them; without the repair it asks for another cut."""
    net = stepwise()
    plan = plan_of(net)
    own = {"pruned_ratios": RATIOS, "schedule": {"steps": 3, "epochs": 2}}
    for purpose in PURPOSES[1:]:
        assert adopt(net, purpose, **own) is plan
    with pytest.raises(PlanError, match="in another way than slim.yml asks for"):
        adopt(net, "resume", **own, repair=None)


def test_a_plan_of_an_earlier_version(tmp_path: Path) -> None:
    """Its file has neither the new settings nor a repair; it is adopted, and cut again."""
    net, stem = pruned(criterion="l1_norm", repair=None), tmp_path / "old"
    checkpoint.save_weights(stem, net.state_dict(), [plan_of(net)])
    file = Path(f"{stem}.plan.json")
    content = json.loads(file.read_text())
    assert "repair" not in content, "an earlier file that is saved again stays as it is"
    own = {key: content["settings"][key] for key in ("criterion", "ratios", "align", "seed")}
    file.write_text(json.dumps({**content, "settings": own}))
    loaded = detector()
    checkpoint.load_weights(loaded, stem)
    plan = plan_of(loaded)
    assert plan.repair is None and plan.settings == own
    for purpose in PURPOSES:
        assert adopt(loaded, purpose, **HALF, criterion="l1_norm", repair=None) is plan
    plan = adopt(loaded, "train", **THIRD)
    assert plan.repair is not None and plan.settings["earlier"] == [own]
    assert_equals_masked(loaded)
