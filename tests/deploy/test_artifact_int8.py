"""A quantized detector is exported with the integers of its record and the AP of its simulation."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest

from slim_det.compress.quantize.model import keep_float, program_ranges, quantized_layers
from slim_det.compress.quantize.record import record_of
from slim_det.compress.steps import attach_step
from slim_det.core.errors import ExportError, QuantError
from slim_det.core.files import sha256_of
from slim_det.deploy import artifact, metric_check, predictor
from slim_det.deploy.artifact import export_model
from slim_det.deploy.latency import compare_latency, random_batch
from slim_det.deploy.predictor import Predictor, network_engine
from slim_det.evaluate.evaluation import (
    EvalResult,
    dygraph_predictor,
    evaluate,
    evaluate_model,
)
from slim_det.graph.engine import cpu_has_int8
from slim_det.graph.int8_program import float_layers, int8_layers
from slim_det.graph.program import DeployProgram
from tests.commands import Outcome, files_below
from tests.deploy.exported import Exported, export_pair, record_for
from tests.support import require_int8
from tests.trained import thin_detector

OUTPUTS = ["yolo_head.yolo_output.0", "yolo_head.yolo_output.1", "yolo_head.yolo_output.2"]


@pytest.fixture(scope="module")
def quantized(
    tmp_path_factory: pytest.TempPathFactory, tiny: Path, shapes: Path, ppdet_registered: None
) -> Exported:
    """A checkpoint of a small detector with integers."""
    folder = tmp_path_factory.mktemp("quantized")
    detector = thin_detector(folder / "thin", tiny, shapes)
    return export_pair(folder / "pair", detector.config, record_for(detector.config))[1]


@pytest.fixture
def loaded(fresh_config: Any, quantized: Exported) -> tuple[Any, paddle.nn.Layer]:
    return quantized.load()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield tmp_path_factory.mktemp("exported")


def test_artifact_is_the_simulated_model(loaded: tuple[Any, paddle.nn.Layer], folder: Path) -> None:
    cfg, model = loaded
    # Where there are no int8 kernels, the engine does not round activations, and AP is another.
    gap = metric_check.MAX_GAP if cpu_has_int8() else 100.0
    result = export_model(model, cfg, folder, max_gap=gap)
    written, record = folder / cfg.filename, record_of(model)
    assert record is not None
    manifest = json.loads((written / "slim_det.json").read_text())
    assert manifest["sha256"] == {name: sha256_of(written / name) for name in manifest["sha256"]}
    assert manifest["precision"] == "int8" == result.precision
    assert manifest["engine"] == {"name": "paddle_inference", "onednn": True, "int8": True}
    found = manifest["quantization"]
    assert found["layers"] == len(record.layers) and found["settings"] == record.settings.as_dict()
    assert found["layers_float"] == record.kept_float and list(result.layers_float) == OUTPUTS
    ranges = {name: layer.activation.range() for name, layer in quantized_layers(model).items()}
    assert found["input_ranges"] == ranges
    program = DeployProgram.load(written / "model")
    assert int8_layers(program) == list(program_ranges(model))
    parameters = dict(model.named_parameters())
    assert float_layers(program) == [parameters[f"{name}.weight"].name for name in OUTPUTS]
    simulated = evaluate(cfg, dygraph_predictor(model), "dygraph", latency_runs=1).ap
    metric = manifest["metric"]
    assert metric["model"] == pytest.approx(simulated) and simulated > 0.05
    assert result.ap == metric["artifact"] and metric["name"] == "coco_ap"
    assert metric["num_images"] == 6
    require_int8()
    assert metric["artifact"] == pytest.approx(simulated, abs=0.005)


def test_artifact_runs_in_int8(folder: Path) -> None:
    (written,) = folder.iterdir()
    predict = Predictor(written, threads=1)
    assert predict.precision == ("int8" if cpu_has_int8() else "float32")
    (row,) = compare_latency([written], runs=1)
    assert row.precision == predict.precision and row.speedup == 1.0


def test_latency_of_the_network_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine gives the raw outputs, in int8 like the artifact; without any there is no time."""
    (written,) = folder.iterdir()
    program = DeployProgram.load(written / "model")
    engine = network_engine(program, int8=cpu_has_int8())
    assert engine is not None and engine.inputs == ["image"]
    shapes = [value.shape for value in engine(random_batch((96, 96))).values()]
    assert shapes == [(1, 27, side, side) for side in (3, 6, 12)]
    (row,) = compare_latency([written], runs=1, network_only=True)
    assert row.speedup == 1.0 and row.latency_ms > 0.0
    monkeypatch.setattr(DeployProgram, "raw_outputs", [])
    assert network_engine(program, int8=False) is None
    with pytest.raises(ExportError, match="has no raw outputs before its boxes"):
        compare_latency([written], runs=1, network_only=True)


def test_cpu_without_int8_runs_the_same_weights_in_float(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With one line that says so; the artifact is left as it is."""
    (written,) = folder.iterdir()
    batch = random_batch((96, 96))
    (exact,) = Predictor(written, threads=1)(batch)
    before = files_below(written)
    monkeypatch.setattr(predictor, "cpu_has_int8", lambda: False)
    caplog.clear()
    with caplog.at_level("INFO", "slim_det"):
        predict = Predictor(written, threads=1)
    (line,) = [r.getMessage() for r in caplog.records if "no int8 instructions" in r.getMessage()]
    assert str(written) in line and "runs in float" in line
    assert predict.precision == "float32" and files_below(written) == before
    (found,) = predict(batch)
    assert found.scores[0] == pytest.approx(exact.scores[0], abs=0.1)


@pytest.mark.parametrize("damage", ["cut", "json", "gone", "unsigned cut", "not a program"])
def test_damaged_artifact_is_one_line(
    cli: Callable[..., Outcome], quantized: Exported, folder: Path, tmp_path: Path, damage: str
) -> None:
    (written,) = folder.iterdir()
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in written.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    if damage in ("unsigned cut", "not a program"):
        (copy / "slim_det.json").unlink()
    if "cut" in damage:
        path = copy / "model.pdiparams"
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "json":
        (copy / "slim_det.json").write_text("{")
    elif damage == "gone":
        (copy / "model.pdiparams").unlink()
    else:
        (copy / "model.pdmodel").write_text("something else")
    for command in (("eval",), ("infer", "--infer_dir", copy.parent)):
        arguments = ("-c", quantized.config, "--artifact", copy)
        if command[0] == "infer":
            picture = next((quantized.config.parent / "set" / "images").iterdir())
            command = ("infer", "--infer_img", picture, "--output_dir", tmp_path / "out")
        outcome = cli(*command, *arguments)
        assert outcome.code == 2, outcome.err + outcome.out
        assert len(outcome.err.splitlines()) == 1 and "copy" in outcome.err, outcome.err


def test_eval_of_the_artifact(
    cli: Callable[..., Outcome], quantized: Exported, folder: Path, tmp_path: Path
) -> None:
    """AP and latency of that very file, under the keys of every evaluation."""
    (written,) = folder.iterdir()
    outcome = cli(
        *("eval", "-c", quantized.config, "--artifact", written, "--threads", 1),
        *("--json", tmp_path / "eval.json"),
    )
    assert outcome.code == 0, outcome.err
    assert "quantized" not in outcome.out + outcome.err  # what int8 passes announce
    found = json.loads((tmp_path / "eval.json").read_text())
    manifest = json.loads((written / "slim_det.json").read_text())
    assert found["ap"] == pytest.approx(manifest["metric"]["artifact"], abs=1e-6)
    assert found["engine"] == "paddle_inference" and found["artifact"] == str(written)
    assert found["latency_ms"] > 0 and found["num_images"] == 6
    assert found["precision"] == ("int8" if cpu_has_int8() else "float32")


def test_metric_is_not_measured(
    cli: Callable[..., Outcome], quantized: Exported, tmp_path: Path
) -> None:
    """With a line that says so, null in both files, and no need for the data."""
    outcome = cli(
        *("export", "-c", quantized.config, "--no_eval", "--output_dir", tmp_path / "out"),
        *("--json", tmp_path / "export.json"),
        *("-o", f"weights={quantized.weights}", "EvalDataset.anno_path=gone.json"),
    )
    assert outcome.code == 0, outcome.err
    assert "AP of the int8 model was not measured (--no_eval)" in outcome.out
    found = json.loads((tmp_path / "export.json").read_text())
    assert found["ap"] is None and found["latency_ms"] > 0 and found["layers_float"] == OUTPUTS
    assert set(found) >= {"artifact", "size_mb"}
    manifest = json.loads((Path(found["artifact"]) / "slim_det.json").read_text())
    assert manifest["metric"] is None and manifest["precision"] == "int8"


def test_data_that_cannot_be_read(
    cli: Callable[..., Outcome], quantized: Exported, tmp_path: Path
) -> None:
    outcome = cli(
        *("export", "-c", quantized.config, "--output_dir", tmp_path / "out"),
        *("-o", f"weights={quantized.weights}", "EvalDataset.anno_path=gone.json"),
    )
    assert outcome.code == 2 and len(outcome.err.splitlines()) == 1
    assert "EvalDataset cannot be read" in outcome.err and "add --no_eval" in outcome.err
    assert not (tmp_path / "out").exists()


def test_layer_that_was_put_back_to_float(
    loaded: tuple[Any, paddle.nn.Layer], tmp_path: Path
) -> None:
    cfg, model = loaded
    keep_float(model, ["neck.yolo_block.0.tip"], "to see")
    result = export_model(model, cfg, tmp_path, max_gap=None)
    weight = dict(model.named_parameters())["neck.yolo_block.0.tip.conv.weight"].name
    program = DeployProgram.load(Path(result.artifact) / "model")
    assert weight in float_layers(program) and weight not in int8_layers(program)
    assert result.layers_float == (*OUTPUTS, "neck.yolo_block.0.tip")


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_scales_that_are_lost(
    loaded: tuple[Any, paddle.nn.Layer], tmp_path: Path, value: float
) -> None:
    cfg, model = loaded
    layer = quantized_layers(model)["neck.yolo_block.0.tip"]
    layer.activation.limit.set_value(np.full([1], value, np.float32))
    with pytest.raises(QuantError, match=r"'neck.yolo_block.0.tip' has lost its scales"):
        export_model(model, cfg, tmp_path)
    assert files_below(tmp_path) == {}


@pytest.mark.parametrize("found", ["float", "int8"])
def test_file_and_record_that_disagree(
    loaded: tuple[Any, paddle.nn.Layer], tmp_path: Path, monkeypatch: Any, found: str
) -> None:
    """A layer that the exporter forgot, or one too many."""
    cfg, model = loaded
    name = "neck.yolo_block.0.tip"
    scales = program_ranges(model)
    weight = dict(model.named_parameters())[f"{name}.conv.weight"].name
    if found == "float":
        write = artifact.write_int8

        def forget(program: DeployProgram, scales: dict[str, Any]) -> None:
            write(program, {n: s for n, s in scales.items() if n != weight})

        monkeypatch.setattr(artifact, "write_int8", forget)
    else:
        kept = {n: s for n, s in scales.items() if n != weight}
        check = artifact.check_integers
        monkeypatch.setattr(artifact, "check_integers", lambda m, f, _: check(m, f, kept))
    other = "int8" if found == "float" else "float"
    with pytest.raises(
        ExportError, match=rf"'{name}.conv.weight' is {found} in the file and {other} in the model"
    ):
        export_model(model, cfg, tmp_path, max_gap=None)
    assert files_below(tmp_path) == {}


def test_artifact_that_is_worse_than_its_model(
    loaded: tuple[Any, paddle.nn.Layer], tmp_path: Path, monkeypatch: Any
) -> None:
    """The layer whose scale an exporter doubled is named; nothing is published."""
    cfg, model = loaded
    name = "neck.yolo_block.0.conv_module.conv1"
    weight = dict(model.named_parameters())[f"{name}.conv.weight"].name
    write = artifact.write_int8

    def doubled(program: DeployProgram, scales: dict[str, Any]) -> None:
        wrong = replace(scales[weight], weight_ranges=scales[weight].weight_ranges * 2)
        write(program, scales)
        scale = f"{weight}.scale"
        program.set_value(scale, wrong.weight_ranges.astype(np.float32) * 2)

    monkeypatch.setattr(artifact, "write_int8", doubled)
    with pytest.raises(ExportError, match=f"first layer that differs is '{name}'") as error:
        export_model(model, cfg, tmp_path)
    assert "points apart, expected at most 0.5" in str(error.value)
    assert "\n" not in str(error.value)
    assert files_below(tmp_path) == {}


@pytest.mark.parametrize("model_ap, passed", [(0.5, True), (0.504, True), (0.4, False)])
def test_half_a_point(
    loaded: tuple[Any, paddle.nn.Layer],
    quantized: Exported,
    monkeypatch: Any,
    model_ap: float,
    passed: bool,
) -> None:
    """AP 0.5 of the artifact against that of the model."""
    cfg, model = loaded

    def artifact(*arguments: Any, **options: Any) -> Any:
        return replace(evaluate(*arguments, **options), ap=0.5)

    def simulated(cfg: Any, model: paddle.nn.Layer) -> Any:
        return replace(evaluate_model(cfg, model), ap=model_ap)

    monkeypatch.setattr(metric_check, "evaluate", artifact)
    monkeypatch.setattr(metric_check, "evaluate_model", simulated)
    if passed:
        found = metric_check.check_metric(model, cfg, quantized.artifact, (96, 96))
        assert (found.model, found.artifact, found.num_images) == (model_ap, 0.5, 6)
        return
    with pytest.raises(ExportError, match=r"10.00 points apart.*errors grow slowly"):
        metric_check.check_metric(model, cfg, quantized.artifact, (96, 96))


@pytest.mark.parametrize(
    ("ap", "expected", "collapsed"),
    [
        (0.0, 0.0, False),
        (0.9, 0.6, False),
        (0.35, 0.7, False),
        (0.34, 0.7, True),
        (0.0, 0.7343, True),
        (0.0, 0.01, False),  # a point: of hardly any AP, chance takes half
        (0.0, 0.011, True),
        (float("nan"), 0.7, True),
    ],
)
def test_more_than_half(ap: float, expected: float, collapsed: bool) -> None:
    assert metric_check.has_collapsed(ap, expected) is collapsed


@pytest.mark.parametrize(
    ("model_ap", "in_float", "phrase"),
    [
        (0.2, 0.38, ""),
        (0.2, None, ""),
        (0.45, 0.2, "0.4500 in the model, on 6 images: more than half is lost, which --max_gap"),
        (0.2, 0.45, "is 0.2000 in int8 and 0.4500 in float: more than half is lost, so nothing"),
    ],
)
def test_metric_that_collapsed(
    loaded: tuple[Any, paddle.nn.Layer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model_ap: float,
    in_float: float | None,
    phrase: str,
) -> None:
    """AP 0.2 of the artifact against its model's and the float model's, whatever the gap."""
    cfg, model = loaded
    shipped = EvalResult("coco_ap", 0.2, 0.2, {}, 6, "paddle_inference", 0.0)
    simulated = replace(shipped, ap=model_ap)
    monkeypatch.setattr(metric_check, "evaluate", lambda *given, **more: shipped)
    monkeypatch.setattr(metric_check, "evaluate_model", lambda *given: simulated)
    if not phrase:
        assert export_model(model, cfg, tmp_path, max_gap=100.0, in_float=in_float).ap == 0.2
        return
    with pytest.raises(ExportError) as caught:
        export_model(model, cfg, tmp_path, max_gap=100.0, in_float=in_float)
    assert phrase in str(caught.value) and "\n" not in str(caught.value)
    assert files_below(tmp_path) == {}


def test_gap_on_a_cpu_without_int8_is_explained(
    loaded: tuple[Any, paddle.nn.Layer], quantized: Exported, monkeypatch: Any
) -> None:
    cfg, model = loaded
    monkeypatch.setattr(predictor, "cpu_has_int8", lambda: False)
    with pytest.raises(ExportError, match="int8 instructions.* add --no_eval to exp") as error:
        metric_check.check_metric(model, cfg, quantized.artifact, (96, 96), max_gap=-1.0)
    assert "\n" not in str(error.value)


def test_record_is_what_decides(loaded: tuple[Any, paddle.nn.Layer], tmp_path: Path) -> None:
    """A record of more layers than the model simulates is an error, not a float artifact."""
    cfg, model = loaded
    record = record_of(model)
    assert record is not None
    tip = next(layer for layer in record.layers if layer.name == "neck.yolo_block.0.tip")
    keep_float(model, [tip.name], "gone")
    attach_step(model, record)
    message = "'neck.yolo_block.0.tip' is quantized in the record and has no scales"
    with pytest.raises(QuantError, match=message):
        export_model(model, cfg, tmp_path)
    assert files_below(tmp_path) == {}
