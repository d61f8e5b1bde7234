"""What is trained beside the student: that it learns, that it is apart, that it can be resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from paddle.utils import unique_name

from slim_det.compress.distill import auxiliary_modules as modules_beside
from slim_det.compress.distill.auxiliary_modules import (
    AuxiliaryModules,
    make_adaptor,
    make_peer,
)
from slim_det.core.errors import TrainingError, WeightsError
from tests.compress.distill.tiny_detectors import (
    arrays,
    distilled,
    make_batch,
    pair,
    raw_outputs,
    same,
    tiny_detector,
)


@pytest.fixture(autouse=True)
def _config(fresh_config: Any) -> None:
    """ppdet's own optimizer settings: momentum 0.9, decay 1e-4."""


def wide(mutual: bool = False, seed: int = 0, **more: Any) -> tuple[Any, Any, Any]:
    """A student of 4 channels, a teacher of 6, and their distiller."""
    student, teacher = tiny_detector(seed + 1), tiny_detector(seed + 2, width=6)
    loss = "dml" if mutual else None
    return student, teacher, distilled(student, teacher, loss, pairs=[pair("feature_l2")], **more)


def steps(student: Any, distiller: Any, optimizer: Any, seeds: range, rate: float = 0.05) -> None:
    for seed in seeds:
        student(make_batch(seed))["loss"].backward()
        with unique_name.guard():  # slots are numbered as in a process of its own
            optimizer.step()
        optimizer.clear_grad()
        distiller.auxiliary_modules.step(rate)


def test_nothing_to_train_means_no_auxiliary_modules() -> None:
    distiller = distilled(tiny_detector(1), tiny_detector(2), "l2", pairs=[pair("feature_l2")])
    assert distiller.auxiliary_modules is None


def test_an_adaptor_maps_channels() -> None:
    adaptor = make_adaptor(3, 2, 5)
    assert adaptor.weight.name == "distill_adaptor_3.w_0"
    assert adaptor.weight.shape == [5, 2, 1, 1]
    assert adaptor.bias is None
    assert make_adaptor(3, 2, 5).weight.name == "distill_adaptor_3.w_0"


def test_the_term_compares_adapted_features() -> None:
    """Computed again with numpy: a 1x1 convolution is a product of matrices at every place."""
    student, teacher, distiller = wide()
    batch = make_batch()
    loss = student(batch)["distill_feature_l2"].item()
    weight = distiller.auxiliary_modules.layer.parameters()[0].numpy()[:, :, 0, 0]
    ours, theirs = (
        model.neck.tips[1](model.backbone(batch)).numpy() for model in (student, teacher)
    )
    adapted = np.einsum("ok,nkhw->nohw", weight, ours)
    assert loss == pytest.approx(np.square(adapted - theirs).mean(), rel=1e-4)


def test_an_adaptor_learns_and_the_teacher_does_not() -> None:
    student, teacher, distiller = wide()
    before, batch = arrays(teacher), make_batch()
    adaptor = distiller.auxiliary_modules.layer.parameters()[0]
    start, losses = adaptor.numpy().copy(), []
    for _ in range(30):  # the student stands still
        loss = student(batch)["distill_feature_l2"]
        loss.backward()
        student.clear_gradients()
        distiller.auxiliary_modules.step(0.05)
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert not np.array_equal(start, adaptor.numpy())
    assert adaptor.grad is None
    assert same(before, arrays(teacher))


def test_a_step_is_the_one_of_the_optimizer_at_the_given_rate() -> None:
    """First step of momentum: weight - rate * (gradient + 1e-4 * weight)."""
    student, _, distiller = wide()
    student(make_batch())["loss"].backward()
    adaptor = distiller.auxiliary_modules.layer.parameters()[0]
    before, gradient = adaptor.numpy().copy(), adaptor.grad.numpy().copy()
    distiller.auxiliary_modules.step(0.25)
    expected = before - 0.25 * (gradient + 1e-4 * before)
    assert np.allclose(adaptor.numpy(), expected, atol=1e-6)


def test_without_gradients_nothing_moves() -> None:
    student, _, distiller = wide(start_epoch=1)
    student(make_batch())["loss"].backward()
    before = arrays(distiller.auxiliary_modules.layer)
    distiller.auxiliary_modules.step(0.5)
    assert same(before, arrays(distiller.auxiliary_modules.layer))


def test_names_collide_with_nothing() -> None:
    student, teacher, distiller = wide(mutual=True)
    ours = {parameter.name for parameter in student.parameters()}
    beside = [parameter.name for parameter in distiller.auxiliary_modules.layer.parameters()]
    assert len(beside) == len(set(beside)) == len(teacher.parameters()) + 1
    assert not ours & set(beside)
    assert {name for name in beside if not name.startswith("peer.")} == {"distill_adaptor_0.w_0"}


def test_a_peer_learns_except_for_what_is_held() -> None:
    teacher = tiny_detector(1)
    for parameter in teacher.parameters():
        parameter.stop_gradient = True
    teacher.neck.tips[0].bias.optimize_attr["learning_rate"] = 0.0
    make_peer(make_peer(teacher))
    still = {name for name, p in teacher.named_parameters() if p.stop_gradient}
    assert still == {"backbone.bn._mean", "backbone.bn._variance", "neck.tips.0.bias"}
    assert teacher.neck.tips[0].weight.name == "peer.conv2d_1.w_0"


def bernoulli_kl(target: np.ndarray, guess: np.ndarray) -> np.ndarray:
    return target * np.log(target / guess) + (1 - target) * np.log((1 - target) / (1 - guess))


def mutual_by_hand(learner: Any, other: Any, batch: Any) -> float:
    """KL of other from learner over x, y, objectness and class, summed over two scales."""
    total = 0.0
    for ours, theirs in zip(raw_outputs(learner, batch), raw_outputs(other, batch)):
        p, q = (1 / (1 + np.exp(-x.astype("float64")[:, [0, 1, 4, 5]])) for x in (theirs, ours))
        total += bernoulli_kl(p, q).mean()
    return total


def test_mutual_losses_and_gradients() -> None:
    """Both learn from their own loss and the mirrored term; no gradient crosses over."""
    student, peer, batch = tiny_detector(1), tiny_detector(2), make_batch()
    distilled(student, peer, "dml", 2.0)
    losses = student(batch)
    expected = 2.0 * mutual_by_hand(student, _training(peer), batch)
    assert losses["distill_dml"].item() == pytest.approx(expected, rel=1e-4)
    assert all(parameter.grad is None for parameter in student.parameters())
    bias = peer.yolo_head.outputs[0].bias
    given = bias.grad.numpy().copy()
    losses["loss"].backward()
    assert np.array_equal(given, bias.grad.numpy())

    # Central differences of the peer's own loss and the mirrored term, in one bias.
    def peer_total() -> float:
        raw = raw_outputs(peer, batch)
        own = sum(np.square(x - 1.0).mean() for x in raw)
        return float(own) + 2.0 * mutual_by_hand(peer, student, batch)

    start, sides = bias.numpy().copy(), []
    for shift in (1e-2, -1e-2):
        bias.set_value(start + shift * np.eye(6, dtype="float32")[4])
        sides.append(peer_total())
    assert given[4] == pytest.approx((sides[0] - sides[1]) / 2e-2, rel=1e-2)


def _training(model: Any) -> Any:
    assert model.training
    return model


def test_student_and_peer_both_move() -> None:
    student, peer = tiny_detector(1), tiny_detector(2)
    before = arrays(student), arrays(peer)
    distiller = distilled(student, peer, "dml")
    optimizer = paddle.optimizer.SGD(0.05, parameters=student.parameters())
    steps(student, distiller, optimizer, range(2))
    for start, model in zip(before, (student, peer)):
        after = arrays(model)
        for name in ("neck.tips.0.weight", "yolo_head.yolo_output.1.bias", "backbone.bn._mean"):
            assert not np.array_equal(start[name], after[name]), name


def test_a_peer_rests_outside_its_schedule() -> None:
    student, peer = tiny_detector(1), tiny_detector(2)
    distiller = distilled(student, peer, "dml", start_epoch=1)
    before = arrays(peer)
    student(make_batch())["loss"].backward()
    distiller.auxiliary_modules.step(0.1)
    assert same(before, arrays(peer))


def test_an_infinite_loss_of_the_peer_stops_as_well() -> None:
    student, peer = tiny_detector(1), tiny_detector(2)
    distiller = distilled(student, peer, "dml", 1.0)
    distiller.epoch, distiller.step = 2, 5
    # Width is no part of the term, so only the peer's own loss is wrong.
    peer.yolo_head.outputs[0].bias.set_value(np.array([0, 0, 1e30, 0, 0, 0], "float32"))
    with pytest.raises(TrainingError, match="epoch 2, step 5: the peer's loss is infinite"):
        student(make_batch())
    assert all(parameter.grad is None for parameter in peer.parameters())


def saved(distiller: Any, stem: Path) -> Path:
    """Write the auxiliary modules where a checkpoint keeps them."""
    path = stem.with_name(f"{stem.name}.companions.pdparams")
    distiller.write(path)
    return path


@pytest.mark.parametrize("mutual", [False, True])
def test_a_resumed_run_goes_on_as_if_never_stopped(mutual: bool, tmp_path: Path) -> None:
    def start(seed: int) -> tuple[Any, Any, Any]:
        student, _, distiller = wide(mutual, seed)
        optimizer = paddle.optimizer.Momentum(0.05, 0.9, parameters=student.parameters())
        return student, distiller, optimizer

    student, distiller, optimizer = start(0)
    steps(student, distiller, optimizer, range(3))
    saved(distiller, tmp_path / "2")
    state = arrays(student)
    slots = {name: value.clone() for name, value in optimizer.state_dict().items()}
    teacher = arrays(distiller.teacher)
    steps(student, distiller, optimizer, range(3, 5))

    resumed, other, again = start(0 if not mutual else 7)
    resumed.set_state_dict(state)
    if not mutual:  # a teacher is loaded from its own file
        other.teacher.set_state_dict(teacher)
    again.set_state_dict(slots)
    other.resume(tmp_path / "2")
    steps(resumed, other, again, range(3, 5))
    assert same(arrays(student), arrays(resumed))
    assert same(arrays(distiller.auxiliary_modules.layer), arrays(other.auxiliary_modules.layer))


def test_a_term_that_starts_after_the_checkpoint(tmp_path: Path) -> None:
    """Its adaptor has no state in the file; from then on both runs are the same."""

    def start() -> tuple[Any, Any]:
        student, teacher = tiny_detector(1), tiny_detector(2, width=6)
        pairs = [pair("feature_l2", start_epoch=1), pair("feature_l2", "neck.tips.0")]
        return student, distilled(student, teacher, None, pairs=pairs)

    def learn(student: Any, distiller: Any, epoch: int) -> None:
        distiller.epoch = epoch
        for seed in range(2):
            student(make_batch(seed))["loss"].backward()
            student.clear_gradients()
            distiller.auxiliary_modules.step(0.05)

    student, distiller = start()
    learn(student, distiller, 0)
    saved(distiller, tmp_path / "0")
    resumed, other = start()
    resumed.set_state_dict(arrays(student))
    other.resume(tmp_path / "0")
    for pair_of in ((student, distiller), (resumed, other)):
        learn(*pair_of, 1)
    assert same(arrays(distiller.auxiliary_modules.layer), arrays(other.auxiliary_modules.layer))
    slots = [c.auxiliary_modules.optimizer.state_dict() for c in (distiller, other)]
    assert len(slots[0]) == 2
    assert same(*({name: x.numpy() for name, x in s.items()} for s in slots))


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    _, _, distiller = wide()
    with pytest.raises(
        WeightsError, match=r"auxiliary modules '.*4\.companions\.pdparams' do not"
    ) as e:
        distiller.resume(tmp_path / "4")
    assert "\n" not in str(e.value)


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    _, _, distiller = wide()
    path = saved(distiller, tmp_path / "4")
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(WeightsError, match="cannot be read") as error:
        distiller.resume(tmp_path / "4")
    assert "\n" not in str(error.value)


def test_another_distillation_is_refused_and_nothing_changes() -> None:
    first = AuxiliaryModules({"distill_a": make_adaptor(0, 2, 3)})
    for other in ({"distill_a": make_adaptor(0, 2, 4)}, {"distill_b": make_adaptor(0, 2, 3)}, {}):
        auxiliary_modules = AuxiliaryModules(other) if other else first
        state = first.state_dict() if other else {}
        before = arrays(auxiliary_modules.layer)
        with pytest.raises(WeightsError, match="the state does not fit this distillation: "):
            auxiliary_modules.set_state_dict(state)
        assert same(before, arrays(auxiliary_modules.layer))
    slot = {"optimizer/peer.conv2d_0.w_0_velocity_0": np.zeros(1, "float32")}
    with pytest.raises(WeightsError, match="belongs to no parameter"):
        first.set_state_dict({**first.state_dict(), **slot})


def test_another_kind_of_optimizer_is_refused() -> None:
    def trained(kind: Any) -> AuxiliaryModules:
        adaptor = make_adaptor(0, 2, 3)
        made = AuxiliaryModules({"distill_a": adaptor}, None, lambda rate, x: kind(rate, x))
        adaptor(paddle.ones([1, 2, 1, 1])).sum().backward()
        made.step(0.1)
        return made

    def momentum(rate: float, layer: Any) -> Any:
        return paddle.optimizer.Momentum(rate, parameters=layer.parameters())

    def adam(rate: float, layer: Any) -> Any:
        return paddle.optimizer.Adam(rate, parameters=layer.parameters())

    state = trained(momentum).state_dict()
    other = trained(adam)
    before = arrays(other.layer)
    with pytest.raises(WeightsError, match="is of another kind of optimizer: 'distill_adaptor_0"):
        other.set_state_dict(state)
    assert same(before, arrays(other.layer))


def test_the_optimizer_is_the_configured_one(fresh_config: Any) -> None:
    settings = {"optimizer": {"type": "Adam"}, "regularizer": None}
    fresh_config["OptimizerBuilder"].update(settings)
    auxiliary_modules = AuxiliaryModules({"distill_a": make_adaptor(0, 2, 3)})
    assert type(auxiliary_modules.optimizer) is paddle.optimizer.Adam


def test_processes_average_their_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two processes with gradients g and 2g, each takes a step with 1.5g."""
    monkeypatch.setattr(modules_beside.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(modules_beside.dist, "all_reduce", lambda x: x.set_value(3.0 * x))
    adaptor = make_adaptor(0, 2, 3)
    auxiliary_modules = AuxiliaryModules(
        {"distill_a": adaptor},
        None,
        lambda rate, layer: paddle.optimizer.SGD(rate, parameters=layer.parameters()),
    )
    before = adaptor.weight.numpy().copy()
    adaptor(paddle.ones([1, 2, 1, 1])).sum().backward()  # a gradient of 1 everywhere
    auxiliary_modules.step(0.1)
    assert np.allclose(adaptor.weight.numpy(), before - 0.15, atol=1e-6)


def test_processes_start_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[list[int]] = []
    _, _, distiller = wide()
    distiller.auxiliary_modules.synchronize()
    monkeypatch.setattr(modules_beside.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(modules_beside.dist, "broadcast", lambda x, src: sent.append(x.shape))
    distiller.auxiliary_modules.synchronize()
    assert sent == [[6, 4, 1, 1]]
