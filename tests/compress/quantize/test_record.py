"""Records: written and read back, and every way in which a file may be no record."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import paddle
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slim_det.compress.quantize.record import (
    QuantLayer,
    QuantRecord,
    record_of,
)
from slim_det.compress.quantize.settings import (
    ActivationType,
    QuantSettings,
    WeightType,
)
from slim_det.compress.steps import attach_step, detach_step
from slim_det.core.errors import QuantError
from tests.compress.quantize.nets import make_record

SETTINGS = st.builds(
    QuantSettings,
    weight_type=st.sampled_from(get_args(WeightType)),
    activation_type=st.sampled_from(get_args(ActivationType)),
    weight_bits=st.integers(2, 16),
    activation_bits=st.integers(2, 16),
    moving_rate=st.floats(0, 1, exclude_max=True),
    activation_preprocess=st.sampled_from((None, "PACT", "LSQ")),
    weight_preprocess=st.sampled_from((None, "LSQ")),
    unsigned_inputs=st.booleans(),
    layer_types=st.sampled_from([("Conv2D",), ("Conv2D", "Linear")]),
    skip=st.lists(st.text(min_size=1)).map(tuple),
)


@st.composite
def layer_lists(draw: st.DrawFn) -> list[QuantLayer]:
    """Layers with names of their own, some with the range of an earlier one."""
    layers: list[QuantLayer] = []
    for name in draw(st.lists(st.text(min_size=1), unique=True, max_size=6)):
        owners = ["", *(layer.name for layer in layers if not layer.shares)]
        shares = draw(st.sampled_from(owners))
        layers.append(QuantLayer(name, draw(st.text()), shares, draw(st.booleans())))
    return layers


RECORDS = st.builds(
    QuantRecord,
    settings=SETTINGS,
    layers=layer_lists(),
    kept_float=st.dictionaries(st.text(), st.text(), max_size=3),
    origin=st.dictionaries(st.text(), st.text() | st.integers() | st.none(), max_size=3),
)


@given(record=RECORDS)
@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_record_comes_back(record: QuantRecord, tmp_path: Path) -> None:
    path = tmp_path / "x.quant.json"
    path.write_text(record.to_json(), encoding="utf-8")
    assert QuantRecord.read(path) == record


def test_empty_record_comes_back(tmp_path: Path) -> None:
    record = QuantRecord(QuantSettings(), [], {})
    (tmp_path / "x").write_text(record.to_json())
    assert QuantRecord.read(tmp_path / "x") == record and record.origin == {}


def test_file_says_what_it_is() -> None:
    content = json.loads(make_record().to_json())
    assert content["schema"] == QuantRecord.schema == "slim_det.quantization/1"
    assert content["layers"][:2] == [
        {"name": "stem", "norm": "stem.1", "shares": "", "unsigned": False},
        {"name": "left", "norm": "", "shares": "", "unsigned": True},
    ]


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("", "cannot be read"),
        ("{", "cannot be read"),
        ("\udcff", "cannot be read"),
        ("[]", "is not a quantization record: schema is 'list'"),
        ("null", "is not a quantization record: schema is 'NoneType'"),
        ("{}", "schema is None, expected 'slim_det.quantization/1'"),
        ('{"schema": "slim_det.plan/1"}', "schema is 'slim_det.plan/1'"),
        (f'{{"schema": "{QuantRecord.schema}"}}', "is damaged: no 'settings'"),
    ],
)
def test_file_that_is_no_record(tmp_path: Path, text: str, phrase: str) -> None:
    path = tmp_path / "x.quant.json"
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    assert phrase in message_of(path)


def test_file_that_is_missing(tmp_path: Path) -> None:
    assert "does not exist" in message_of(tmp_path / "x.quant.json")


def add_layer(data: dict[str, Any], **layer: Any) -> None:
    data["layers"].append({"unsigned": False, **layer})


@pytest.mark.parametrize(
    ("change", "phrase"),
    [
        (lambda d: d.pop("layers"), "no 'layers'"),
        (lambda d: d.pop("kept_float"), "no 'kept_float'"),
        (lambda d: d.pop("origin"), "no 'origin'"),
        (lambda d: d.update(layers=None), "damaged"),
        (lambda d: d.update(layers="stem"), "'s' is not a layer"),
        (lambda d: d["layers"].append(None), "None is not a layer"),
        (lambda d: add_layer(d, name=3), "'name': 3} is not a mapping of texts"),
        (lambda d: add_layer(d), "'name'"),
        (lambda d: add_layer(d, name="a", way="b"), "'way'"),
        (lambda d: add_layer(d, name="a", unsigned=1), "unsigned: 1 is neither true nor false"),
        (lambda d: d["layers"].append({"name": "a"}), "no 'unsigned'"),
        (lambda d: add_layer(d, name=""), "layer '' is there twice or has no name"),
        (lambda d: add_layer(d, name="left"), "layer 'left' is there twice"),
        (lambda d: add_layer(d, name="a", shares="b"), "'a' shares the range of 'b'"),
        (lambda d: add_layer(d, name="a", shares="a"), "'a' shares the range of 'a'"),
        (
            lambda d: add_layer(d, name="a", shares="right"),
            "'a' shares the range of 'right', which",
        ),
        (lambda d: d.update(kept_float=["output"]), "['output'] is not a mapping of texts"),
        (lambda d: d.update(kept_float={"output": None}), "is not a mapping of texts"),
        (lambda d: d.update(origin=3), "damaged"),
        (lambda d: d.update(settings=None), "settings are"),
        (lambda d: d["settings"].pop("skip"), "settings are"),
        (lambda d: d["settings"].update(more=1), "settings are"),
        (lambda d: d["settings"].update(weight_bits="8"), "weight_bits: '8' is not valid"),
        (lambda d: d["settings"].update(weight_bits=99), "weight_bits: 99 is not valid"),
        (lambda d: d["settings"].update(moving_rate=None), "moving_rate: None is not valid"),
        (lambda d: d["settings"].update(weight_type="abs"), "weight_type: unknown type 'abs'"),
        (lambda d: d["settings"].update(skip=[3]), "skip: [3] is not valid"),
    ],
)
def test_damaged_record(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], phrase: str
) -> None:
    data = json.loads(make_record().to_json())
    change(data)
    path = tmp_path / "x.quant.json"
    path.write_text(json.dumps(data))
    message = message_of(path)
    assert "is damaged: " in message and phrase in message


def message_of(path: Path) -> str:
    """What reading a file complains of: one line that names it."""
    with pytest.raises(QuantError) as caught:
        QuantRecord.read(path)
    message = str(caught.value)
    assert f"'{path}'" in message and "\n" not in message
    return message


def test_records_that_quantize_alike() -> None:
    """Where the ranges are from does not matter; settings and layers do."""
    record = make_record()
    assert not record.differs(replace(record, origin={}, kept_float={"a": "b"}))
    assert record.differs(make_record(weight_bits=4))
    assert record.differs(replace(record, layers=record.layers[:-1]))
    other = [replace(record.layers[0], norm=""), *record.layers[1:]]
    assert record.differs(replace(record, layers=other))


def test_model_remembers_its_record() -> None:
    """And has nothing more to save for it."""
    model, record = paddle.nn.Conv2D(1, 1, 1), make_record()
    names = list(model.state_dict())
    assert record_of(model) is None
    attach_step(model, record)
    assert record_of(model) is record
    assert list(model.state_dict()) == names
    detach_step(model, record)
    assert record_of(model) is None
