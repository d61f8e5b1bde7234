"""Export writes the model it was given, or nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import paddle
import pytest

from slim_det.compress.prune.plan import plan_of
from slim_det.compress.tensors import set_parameter
from slim_det.core.errors import ExportError
from slim_det.core.files import sha256_of
from slim_det.deploy import artifact, checks
from slim_det.deploy.artifact import export_model
from slim_det.deploy.predictor import Predictor
from slim_det.evaluate.box_agreement import compare_boxes
from slim_det.evaluate.detections import Detections
from slim_det.evaluate.evaluation import dygraph_predictor, evaluate, evaluate_model
from slim_det.evaluate.images import eval_at, image_batches
from slim_det.graph.program import DeployProgram
from slim_det.training import session
from slim_det.training.config import apply_overrides, load_config
from tests.commands import files_below


@pytest.fixture
def cfg(fresh_config: Any, tiny: Path) -> Any:
    return load_config(tiny)


@pytest.fixture
def model(cfg: Any, trained: Path) -> paddle.nn.Layer:
    return session.model_with_weights(cfg, str(trained))


@pytest.fixture
def one(shapes: Path) -> list[str]:
    """One image, for speed."""
    return [str(sorted((shapes / "images").iterdir())[0])]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield tmp_path_factory.mktemp("exported")


def test_artifact_is_the_model(
    cfg: Any, model: paddle.nn.Layer, one: list[str], folder: Path
) -> None:
    """Its size, cost, plan and checksums are those of the files and of the pruned model."""
    result = export_model(model, cfg, folder, one)
    written = folder / "tiny"
    assert result.artifact == str(written) and result.images_checked == 1
    manifest = json.loads((written / "slim_det.json").read_text())
    assert manifest["sha256"] == {name: sha256_of(written / name) for name in manifest["sha256"]}
    assert manifest["plan"]["cost"]["after"]["macs"] == result.macs
    assert manifest["plan"]["fingerprint"] == plan_of(model).fingerprint
    assert (
        manifest["precision"] == "float32" == result.precision and manifest["quantization"] is None
    )
    assert manifest["engine"] == {"name": "paddle_inference", "onednn": True, "int8": False}
    assert result.ap is None is manifest["metric"] and result.latency_ms > 0
    assert result.layers_float == ()
    size = sum((written / n).stat().st_size for n in ("model.pdmodel", "model.pdiparams"))
    assert result.size_mb == pytest.approx(size / 1e6)
    assert [path.name for path in folder.iterdir()] == ["tiny"]
    predictor = Predictor(written, threads=1)
    assert predictor.image_size_hw == (96, 96) == tuple(result.image_size_hw)
    assert predictor.settings["label_list"] == ["circle", "square", "triangle", "cross"]


def test_earlier_artifact_is_replaced(
    cfg: Any, model: paddle.nn.Layer, one: list[str], folder: Path
) -> None:
    """By other weights; a folder with anything else in it is left alone."""
    old = sha256_of(folder / "tiny" / "model.pdiparams")
    parameter = dict(model.named_parameters())["yolo_head.yolo_output.0.bias"]
    set_parameter(parameter, parameter.numpy() + 0.5)
    export_model(model, cfg, folder, one)
    assert sha256_of(folder / "tiny" / "model.pdiparams") != old
    assert [path.name for path in folder.iterdir()] == ["tiny"]
    (folder / "tiny" / "notes.txt").write_text("mine")
    before = files_below(folder)
    with pytest.raises(
        ExportError, match=r"holds files that do not belong to an artifact \(notes.txt\)"
    ):
        export_model(model, cfg, folder, one)
    assert files_below(folder) == before


def test_images_that_keep_their_ratio(
    cfg: Any, model: paddle.nn.Layer, shapes: Path, tmp_path: Path
) -> None:
    """Of any size: each as the model finds it alone, and AP too, whatever the reader's batches."""
    resize = {"Resize": {"target_size": [64, 100], "keep_ratio": True, "interp": 1}}
    for name in ("EvalReader", "TestReader"):
        steps = cfg[name]["sample_transforms"]
        cfg[name]["sample_transforms"] = [resize if "Resize" in step else step for step in steps]
        cfg[name]["batch_transforms"] = [{"PadBatch": {"pad_to_stride": 32}}]
    del cfg["TestReader"]["inputs_def"]
    cfg["EvalReader"]["batch_size"] = 3
    paths = []
    for number, crop in enumerate([(96, 96), (50, 96), (96, 40)]):
        pixels = cv2.imread(str(sorted((shapes / "images").iterdir())[number]))
        paths.append(str(tmp_path / f"{number}.png"))
        cv2.imwrite(paths[-1], pixels[: crop[0], : crop[1]])
    result = export_model(model, cfg, tmp_path, paths)
    assert result.images_checked == 4 and result.image_size_hw == (64, 128)
    predictor = Predictor(tmp_path / "tiny", threads=1)
    assert predictor.largest_size_hw == (64, 128)
    sizes = set()
    for path, batch in image_batches(cfg, paths, (64, 100)):
        sizes.add(tuple(batch["image"].shape[2:]))
        (expected,) = dygraph_predictor(model)(batch)
        agreement = compare_boxes(*predictor(predictor.reader(path)), expected)
        assert agreement.passed and agreement.boxes
    assert sizes == {(64, 64), (64, 128), (128, 64)}
    shipped = evaluate(cfg, predictor, "paddle_inference", latency_runs=1, reader=predictor.reader)
    with eval_at(cfg, (64, 100)):
        assert shipped.ap == pytest.approx(evaluate_model(cfg, model).ap, abs=1e-6)


def test_nothing_is_published_that_differs(
    cfg: Any, model: paddle.nn.Layer, one: list[str], tmp_path: Path, monkeypatch: Any
) -> None:
    """Boxes are compared before the folder gets its name."""
    right = checks.dygraph_predictor

    def moved(net: paddle.nn.Layer) -> Any:
        def predict(batch: dict[str, Any]) -> list[Detections]:
            (found,) = right(net)(batch)
            return [replace(found, boxes_xyxy=found.boxes_xyxy + np.float32([2, 0, 0, 0]))]

        return predict

    monkeypatch.setattr(checks, "dygraph_predictor", moved)
    monkeypatch.setattr("slim_det.evaluate.box_agreement.MIN_SCORE", 0.0)
    with pytest.raises(ExportError, match=f"finds other boxes on '{one[0]}'"):
        export_model(model, cfg, tmp_path, one)
    assert files_below(tmp_path) == {}


def test_parameters_that_only_a_training_reads(
    cfg: Any, model: paddle.nn.Layer, one: list[str], tmp_path: Path
) -> None:
    """They are not in the file."""
    model.only_trained = paddle.nn.Linear(3, 5)
    export_model(model, cfg, tmp_path, one)
    program = DeployProgram.load(tmp_path / "tiny" / "model")
    assert model.only_trained.weight.name not in program.parameters


def test_raw_outputs_that_differ(
    cfg: Any, model: paddle.nn.Layer, one: list[str], tmp_path: Path, monkeypatch: Any
) -> None:
    """Also of a detector that finds nothing on the images."""
    apply_overrides(["BBoxPostProcess.nms.score_threshold=2.0"])
    model.post_process.nms.score_threshold = 2.0
    trace = artifact.deployed_program

    def swapped(*given: Any) -> DeployProgram:
        program = trace(*given)
        name = program.stored_weight(program.convolutions[-1])
        program.set_value(name, np.ascontiguousarray(program.value(name)[::-1]))
        return program

    export_model(model, cfg, tmp_path, one)
    monkeypatch.setattr(artifact, "deployed_program", swapped)
    with pytest.raises(ExportError, match=f"has other raw outputs on '{one[0]}': cosine"):
        export_model(model, cfg, tmp_path / "swapped", one)
    assert files_below(tmp_path / "swapped") == {}


def test_missing_parameter_is_noticed(
    cfg: Any, model: paddle.nn.Layer, one: list[str], tmp_path: Path, monkeypatch: Any
) -> None:
    """A tensor that the model reads and the program does not have is named."""
    write = artifact._write

    def write_then_exchange(net: paddle.nn.Layer, *rest: Any) -> None:
        write(net, *rest)
        conv = next(layer for layer in net.sublayers() if isinstance(layer, paddle.nn.Conv2D))
        conv.weight = paddle.create_parameter(conv.weight.shape, "float32", name="another")

    monkeypatch.setattr(artifact, "_write", write_then_exchange)
    with pytest.raises(ExportError, match="parameter another is None in the file"):
        export_model(model, cfg, tmp_path, one)
    assert files_below(tmp_path) == {}


def test_no_images_to_compare_on(
    cfg: Any, model: paddle.nn.Layer, tmp_path: Path, shapes: Path
) -> None:
    cfg["EvalDataset"]["anno_path"] = "gone.json"
    with pytest.raises(ExportError, match="add --infer_img FILE"):
        export_model(model, cfg, tmp_path)
    assert files_below(tmp_path) == {}


def test_images_are_read_one_by_one_in_order(cfg: Any, shapes: Path) -> None:
    paths = [str(path) for path in sorted((shapes / "images").iterdir())[:3]]
    batches = list(image_batches(cfg, paths))
    assert [path for path, _ in batches] == paths
    assert all(batch["image"].shape == [1, 3, 96, 96] for _, batch in batches)
