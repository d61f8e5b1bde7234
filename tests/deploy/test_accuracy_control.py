"""The policy of the search on made-up drops, the ranking of layers, and one complete search."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slim_det.compress.quantize.model import quantized_layers
from slim_det.compress.quantize.observers import PtqOptions
from slim_det.compress.quantize.ptq import PtqResult, run_ptq
from slim_det.compress.quantize.quantization_error import only_quantized
from slim_det.compress.quantize.record import record_of
from slim_det.compress.quantize.settings import QuantSettings
from slim_det.core.errors import QuantError
from slim_det.deploy.accuracy_control import (
    DeployedMetric,
    SearchResult,
    SearchStep,
    fewest,
    output_errors,
    search_float_layers,
)
from slim_det.evaluate.evaluation import EvalResult, dygraph_predictor, evaluate
from slim_det.training import session
from slim_det.training.config import load_config
from tests.compress.quantize.small_nets import small_net, state
from tests.support import restored_config
from tests.trained import Detector, thin_detector


@given(data=st.data(), most=st.integers(1, 60))
def test_the_fewest_of_falling_drops(data: st.DataObject, most: int) -> None:
    drops = sorted(data.draw(st.lists(st.floats(0, 9), min_size=61, max_size=61)), reverse=True)
    limit = data.draw(st.floats(0, 9))
    measured: list[int] = []

    def drop_of(count: int) -> float:
        measured.append(count)
        return drops[count]

    expected = next((k for k in range(most + 1) if drops[k] <= limit), None)
    assert fewest(drop_of, most, limit) == expected
    assert len(measured) == len(set(measured)) and max(measured) <= most


@pytest.mark.parametrize(
    ("needed", "measured"),
    [
        (0, [0]),
        (1, [0, 1]),
        (2, [0, 1, 2]),
        (3, [0, 1, 2, 4, 3]),
        (6, [0, 1, 2, 4, 8, 6, 5]),
        (46, [0, 1, 2, 4, 8, 16, 32, 46, 39, 42, 44, 45]),
        (47, [0, 1, 2, 4, 8, 16, 32, 46]),
    ],
)
def test_what_is_measured(needed: int, measured: list[int]) -> None:
    seen: list[int] = []

    def drop_of(count: int) -> float:
        seen.append(count)
        return 0.0 if count >= needed else 9.0

    assert fewest(drop_of, 46, 1.0) == (needed if needed <= 46 else None)
    assert seen == measured


def test_nothing_can_be_put_back_from_a_single_layer() -> None:
    assert fewest(lambda count: 9.0, 0, 1.0) is None
    assert fewest(lambda count: 1.0, 0, 1.0) == 0


def quantized(cfg: Any, net: paddle.nn.Layer, **options: Any) -> PtqResult:
    settings = QuantSettings(weight_bits=options.pop("bits", 8), skip=options.pop("skip", ()))
    return run_ptq(net, cfg, settings, PtqOptions("abs_max", 2, **options))


def test_output_errors_are_those_of_one_layer_alone(tiny_cfg: Any) -> None:
    net = small_net()
    ptq = quantized(tiny_cfg, net)
    before = state(net)
    net.inputs_seen.clear()
    found = output_errors(net, ptq.trace, tiny_cfg, ptq.images)
    batches = [{"image": paddle.to_tensor(x)} for x in net.inputs_seen[: len(ptq.images)]]
    assert set(found) == {"first", "left", "right"}
    in_float = small_net()
    expected = 0.0
    for output in ("left", "right"):
        signal = noise = 0.0
        for batch in batches:
            hidden = paddle.nn.functional.relu(in_float.norm(in_float.first(batch["image"])))
            with only_quantized(net, ("first",)):
                rounded = paddle.nn.functional.relu(net.norm(net.first(batch["image"])))
            layer = getattr(in_float, output)
            exact, other = layer(hidden).numpy(), layer(rounded).numpy()
            signal += np.square(exact, dtype=np.float64).sum()
            noise += np.square(exact - other, dtype=np.float64).sum()
        expected += noise / signal
    assert found["first"] == pytest.approx(expected, rel=1e-3)
    after = state(net)
    assert all(np.array_equal(before[k], after[k]) for k in before)
    assert not net.left._forward_post_hooks


@pytest.fixture(scope="module")
def thin(
    tmp_path_factory: pytest.TempPathFactory, tiny: Path, shapes: Path, ppdet_registered: None
) -> Detector:
    """A detector with a good AP; no test changes its files."""
    return thin_detector(tmp_path_factory.mktemp("thin") / "thin", tiny, shapes)


@pytest.fixture
def loaded(thin: Detector) -> Iterator[tuple[paddle.nn.Layer, Any]]:
    with restored_config():
        cfg = load_config(thin.config)
        yield session.model_with_weights(cfg, str(thin.weights)), cfg


def test_metrics_of_the_engine(
    loaded: tuple[paddle.nn.Layer, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float that of the trained model, in int8 another, and again the first without int8."""
    model, cfg = loaded
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    trained = evaluate(cfg, dygraph_predictor(model), "dygraph", latency_runs=1)
    metric = DeployedMetric(model, cfg)
    exact = metric.in_float()
    assert exact.ap == pytest.approx(trained.ap, abs=1e-6) and exact.ap > 0.5
    assert exact.engine == "paddle_inference"
    ptq = quantized(cfg, model, bias_correction=True)
    before = state(model)
    low = metric.in_int8()
    assert low.ap != exact.ap
    names = list(quantized_layers(model))
    assert metric.in_int8(names, ptq.quantization_errors).ap == pytest.approx(exact.ap, abs=1e-3)
    after = state(model)
    assert all(np.array_equal(before[k], after[k]) for k in before)
    assert record_of(model) is ptq.record
    assert list(tmp_path.iterdir()) == []


def test_without_int8_instructions_the_metric_is_that_of_the_simulation(
    loaded: tuple[paddle.nn.Layer, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, cfg = loaded
    monkeypatch.setattr("slim_det.deploy.accuracy_control.cpu_has_int8", lambda: False)
    metric = DeployedMetric(model, cfg)
    trained = metric.in_float()
    quantized(cfg, model)
    simulated = evaluate(cfg, dygraph_predictor(model), "dygraph", latency_runs=1)
    assert simulated.ap != trained.ap
    assert metric.in_int8().ap == simulated.ap
    names = list(quantized_layers(model))
    assert metric.in_int8(names).ap == pytest.approx(trained.ap, abs=1e-6)


class MadeUpMetric:
    """A metric that is good where one layer is in float."""

    def __init__(self, model: paddle.nn.Layer, cfg: Any, victim: str) -> None:
        self.model, self.cfg, self.victim = model, cfg, victim
        self.measured: list[list[str]] = []

    def in_int8(self, back: list[str], corrections: Any) -> EvalResult:
        self.measured.append(back)
        return result(0.79 if self.victim in back else 0.5)


def result(ap: float) -> EvalResult:
    return EvalResult("coco_ap", ap, ap, {}, 1, "made_up", 0.0)


@pytest.mark.parametrize("corrected", [False, True])
def test_a_search_puts_the_ruined_layer_back(tiny_cfg: Any, corrected: bool) -> None:
    net, in_float = small_net(), small_net()
    ptq = quantized(tiny_cfg, net, bias_correction=corrected)
    mean = net.norm._mean.numpy()
    quantized_layers(net)["first"].activation.limit.set_value(np.array([1e-3], "float32"))
    metric = MadeUpMetric(net, tiny_cfg, "first")
    found = search_float_layers(metric, ptq, result(0.8), 1.5)  # type: ignore[arg-type]
    assert found.kept == ["first"] and metric.measured == [[], ["first"]]
    assert found.steps == [
        SearchStep(0, 0.5, pytest.approx(30)),
        SearchStep(1, 0.79, pytest.approx(1)),
    ]
    assert list(quantized_layers(net)) == ["left", "right"]
    record = record_of(net)
    assert record is not None
    assert record.kept_float == {"first": "in float so that the metric drops by at most 1.5 points"}
    # A layer in float has no error of rounding to be corrected.
    assert np.array_equal(mean, in_float.norm._mean.numpy()) != corrected
    assert net.norm._mean.numpy() == pytest.approx(in_float.norm._mean.numpy(), abs=1e-6)


def test_nothing_is_put_back_where_the_drop_is_small(tiny_cfg: Any) -> None:
    net = small_net()
    ptq = quantized(tiny_cfg, net)
    metric = MadeUpMetric(net, tiny_cfg, "none of them")
    found = search_float_layers(metric, ptq, result(0.5), 0.0)  # type: ignore[arg-type]
    assert found == SearchResult([], [SearchStep(0, 0.5, 0.0)], {})
    assert len(quantized_layers(net)) == 3


def test_a_search_that_finds_nothing(tiny_cfg: Any) -> None:
    net = small_net()
    ptq = quantized(tiny_cfg, net)
    before = state(net)
    metric = MadeUpMetric(net, tiny_cfg, "none of them")
    with pytest.raises(QuantError, match="with 2 of 3 layers in float the metric is still 30.00"):
        search_float_layers(metric, ptq, result(0.8), 1.0)  # type: ignore[arg-type]
    assert [len(back) for back in metric.measured] == [0, 1, 2]
    assert len(quantized_layers(net)) == 3 and record_of(net) is ptq.record
    after = state(net)
    assert all(np.array_equal(before[k], after[k]) for k in before)
