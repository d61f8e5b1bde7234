"""Checkpoints of a small quantized net."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from slim_det.compress.quantize.record import QuantLayer, QuantRecord, record_of
from slim_det.compress.strategy import step_path
from slim_det.core.errors import QuantError, WeightsError
from slim_det.training import checkpoint
from tests.training.small_checkpoints import (
    Net,
    make_net,
    make_pruned,
    make_quantized,
    make_record,
    momentum,
    output,
    same,
    save,
    values,
)


@pytest.mark.parametrize("make", [make_net, make_pruned], ids=["unpruned", "pruned"])
def test_quantized_model_comes_back_bit_for_bit(tmp_path: Path, make: Callable[[], Net]) -> None:
    """The record is restored behind the plan; the ranges are tensors like any other."""
    net = make_quantized(make())
    stem = save(tmp_path / "1.5", net)
    assert checkpoint.stored_step(stem, QuantRecord) == record_of(net)
    for load in (checkpoint.load_weights, checkpoint.load_pretrained, checkpoint.resume):
        other = make_net()
        assert not np.array_equal(output(other), output(net))
        load(other, stem)
        assert record_of(other) == record_of(net) and same(other, net)
        assert other.backbone[0].activation.range() == 2
        assert np.array_equal(output(other), output(net))


def test_record_of_an_earlier_run_goes_away(tmp_path: Path) -> None:
    """Float weights saved over quantized ones are not quantized when they are loaded."""
    stem = save(tmp_path / "x", make_quantized(make_net()))
    net = make_net()
    save(stem, net)
    assert (
        not step_path(stem, QuantRecord).exists()
        and checkpoint.stored_step(stem, QuantRecord) is None
    )
    checkpoint.load_weights(other := make_net(), stem)
    assert record_of(other) is None and np.array_equal(output(other), output(net))


def test_resume_refuses_another_quantization(tmp_path: Path) -> None:
    """Training with the same quantization continues."""
    stem = save(tmp_path / "x", make_quantized(make_net()))
    net = make_quantized(make_net(), weight_bits=4)
    with pytest.raises(QuantError, match=r"x\.quant\.json' quantizes otherwise .*; resume without"):
        checkpoint.resume(net, stem, momentum(net))
    net = make_quantized(make_net())
    assert checkpoint.resume(net, stem, momentum(net)) == 3


@pytest.mark.parametrize(
    ("text", "phrase"),
    [("{", "cannot be read"), (make_record(QuantLayer("a")).to_json(), "'a'")],
)
def test_record_that_does_not_fit(tmp_path: Path, text: str, phrase: str) -> None:
    """The model is left as it was."""
    stem = save(tmp_path / "x", make_quantized(make_net()))
    step_path(stem, QuantRecord).write_text(text)
    net = make_net()
    before = values(net), output(net)
    with pytest.raises(QuantError, match=phrase):
        checkpoint.load_weights(net, stem)
    assert record_of(net) is None and values(net).keys() == before[0].keys()
    assert np.array_equal(output(net), before[1])


def test_quantized_weights_without_their_record(tmp_path: Path) -> None:
    """The message speaks of the record, not of a plan."""
    stem = save(tmp_path / "x", make_quantized(make_net()))
    step_path(stem, QuantRecord).unlink()
    with pytest.raises(WeightsError, match=r"activation\.limit is only .*'x\.quant\.json' beside"):
        checkpoint.load_weights(make_net(), stem)
