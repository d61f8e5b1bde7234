"""Every point of an analysis is the AP of a model that was really cut."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest

from slim_det.compress.prune.groups import find_groups
from slim_det.compress.prune.plan import apply_plan
from slim_det.compress.prune.pruner import Pruner
from slim_det.compress.prune.ratios import units_removed
from slim_det.detectors.yolov3_head import YOLO_HEAD_LAYERS
from slim_det.evaluate.detections import Detections
from slim_det.evaluate.evaluation import dygraph_predictor, eval_reader, evaluate
from slim_det.graph.trace import trace_detector
from slim_det.planning.sensitivity.analysis import Settings, analyse, journal_path
from slim_det.planning.sensitivity.fields import Points
from slim_det.planning.sensitivity.merge import merge_results
from slim_det.planning.sensitivity.partial_inference import (
    IMAGE_INPUTS,
    DetectorProgram,
    save_program,
)
from slim_det.planning.sensitivity.result import SensitivityResult
from slim_det.training import session
from slim_det.training.config import load_config
from tests.support import restored_config
from tests.trained import Detector, copy_detector, enliven, thin_detector

RATIOS = (0.25, 0.7)
TIPS = Settings(ratios=RATIOS, params=("*tip",))


def measured(config: Path, output: Path, settings: Settings) -> SensitivityResult:
    """The analysis of a configuration."""
    with restored_config():
        cfg = load_config(config)
        model = session.model_with_weights(cfg, cfg.weights)
        return analyse(cfg, model, settings, output)


class Oracle:
    """Cuts a fresh model with the pruner and evaluates it from scratch."""

    def __init__(self, detector: Detector, traced_detector: Any) -> None:
        self._detector, self._traced = detector, traced_detector
        self._state = paddle.load(str(detector.weights), return_numpy=True)

    def ap(
        self,
        group: str | None = None,
        ratio: float = 0.5,
        criterion: str = "l1_norm",
        folder: Path | None = None,
    ) -> Any:
        """AP in the COCO and in the VOC way; given a folder for its files, of Paddle Inference."""
        _, trace, groups = self._traced
        with restored_config():
            cfg = load_config(self._detector.config)
            model = session.build_model(cfg)
            model.set_state_dict(self._state)
            if group:
                pruner = Pruner(criterion, pruned_ratios={group: ratio})
                apply_plan(model, pruner.plan(model, trace, groups))
            predict = in_inference(model, folder) if folder else dygraph_predictor(model)
            outputs = [predict(batch) for batch in eval_reader(cfg)[1]]
        return self._score(self._detector.config, outputs), self._score(self._detector.voc, outputs)

    def _score(self, config: Path, outputs: list[list[Detections]]) -> float:
        """The boxes of each batch in turn; what is run for the latency does not matter."""
        replay = iter([*outputs, *[outputs[0]] * 3])
        with restored_config():
            cfg = load_config(config)
            return evaluate(cfg, lambda batch: next(replay), "dygraph", latency_runs=1).ap


def assert_same_aps(
    found: dict[Any, float], truth: dict[Any, float], in_inference: Callable[[Any], float]
) -> None:
    """AP is a matter of ranks and thresholds: no rounding changes it, or it jumps.

    A jump of few points, between dygraph and Paddle Inference, must not be one in that engine.
    """
    jumps = [key for key, ap in found.items() if ap != pytest.approx(truth[key], abs=1e-6)]
    assert len(jumps) <= max(1, len(found) // 12), jumps
    for key in jumps:
        assert found[key] == pytest.approx(in_inference(key), abs=1e-6), key


@pytest.fixture(scope="module")
def oracle(detector: Detector, traced_detector: Any) -> Oracle:
    return Oracle(detector, traced_detector)


@pytest.fixture(scope="module")
def truth(oracle: Oracle) -> dict[tuple[str, float], tuple[float, float]]:
    """AP of every cut of the head."""
    return {(name, r): oracle.ap(name, r) for name in YOLO_HEAD_LAYERS for r in RATIOS}


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("both") / "out.json"


@pytest.fixture(scope="module")
def both(detector: Detector, output: Path) -> tuple[SensitivityResult, SensitivityResult]:
    """The complete head, in the COCO and in the VOC way."""
    settings = Settings(ratios=RATIOS)
    voc = output.with_name("voc.json")
    return measured(detector.config, output, settings), measured(detector.voc, voc, settings)


@pytest.fixture
def tips(both: Any) -> Points:
    """AP of six of the points, which must not depend on how they are measured."""
    return {name: row for name, row in both[0].ap.items() if name.endswith("tip")}


@pytest.mark.parametrize("place", [0, 1], ids=["coco", "voc"])
def test_every_ap_is_that_of_the_cut_model(
    both: Any, truth: Any, oracle: Oracle, tmp_path: Path, place: int
) -> None:
    """18 layers at two ratios, and the baseline; losses are relative to it."""
    result = both[place]
    assert result.metric == ("coco_ap", "voc_map_11point")[place]
    assert result.baseline == pytest.approx(oracle.ap()[place], abs=1e-6)
    assert result.baseline > 0.5 and result.complete
    found = {(n, r): ap for n, row in result.ap.items() for r, ap in row.items()}
    assert found.keys() == truth.keys() and len(found) == 36
    want = {key: aps[place] for key, aps in truth.items()}
    assert_same_aps(found, want, lambda key: oracle.ap(*key, folder=tmp_path)[place])
    for name, row in result.groups.items():
        for ratio, loss in row.items():
            ap = found[name, ratio]
            assert loss == pytest.approx(1 - ap / result.baseline, abs=1e-9)
    assert len({round(ap, 3) for ap in found.values()}) > 20


def test_other_criterion_cuts_other_channels(
    detector: Detector, oracle: Oracle, truth: Any, tmp_path: Path
) -> None:
    names = ("neck.yolo_block.1.conv_module.conv0", "neck.yolo_block.2.tip")
    settings = Settings(ratios=(0.7,), params=names, criterion="fpgm")
    result = measured(detector.config, tmp_path / "out.json", settings)
    found = {(name, 0.7, "fpgm"): result.ap[name][0.7] for name in names}
    want = {cut: oracle.ap(*cut)[0] for cut in found}
    assert_same_aps(found, want, lambda cut: oracle.ap(*cut, folder=tmp_path)[0])
    assert list(found.values()) != pytest.approx([truth[n, 0.7][0] for n in names], abs=1e-6)
    assert result.criterion == "fpgm"


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["MobileNet", "PlainBackbone"])
def test_every_group_at_every_ratio(
    tiny: Path, shapes: Path, tmp_path: Path, backbone: str
) -> None:
    """All that can be cut, depthwise backbone included.

    Dygraph rounds otherwise than Paddle Inference, which may put a box on the other side of a
    threshold; the pruned model is then run in Paddle Inference.
    """
    options = {"YOLOv3": {"backbone": backbone}}
    detector = thin_detector(tmp_path / "detector", tiny, shapes, **options)
    settings = Settings(ratios=(0.1, 0.3, 0.6, 0.9), params=("all",))
    result = measured(detector.config, tmp_path / "out.json", settings)
    assert len(result.groups) > 20 and result.complete
    found = {(n, r): ap for n, row in result.ap.items() for r, ap in row.items()}
    other_engine = 0
    with restored_config():
        cfg = load_config(detector.config)
        unpruned = session.model_with_weights(cfg, cfg.weights)
        trace = trace_detector(unpruned, (96, 96))
        groups = find_groups(unpruned, trace)
        for (name, ratio), ap in found.items():
            model = session.model_with_weights(cfg, cfg.weights)
            if units_removed(len(groups.groups[name].units), ratio, 1):
                pruner = Pruner(pruned_ratios={name: ratio})
                apply_plan(model, pruner.plan(model, trace, groups))
            want = evaluate(cfg, dygraph_predictor(model), "dygraph", latency_runs=1).ap
            if ap != pytest.approx(want, abs=1e-6):
                assert ap == pytest.approx(want, abs=1e-3), (name, ratio)
                want = evaluate(cfg, in_inference(model, tmp_path), "inference", latency_runs=1).ap
                other_engine += 1
            assert ap == pytest.approx(want, abs=1e-6), (name, ratio)
    assert other_engine <= len(found) // 20


def in_inference(model: paddle.nn.Layer, folder: Path) -> Any:
    """A predictor of a pruned model that was traced anew."""
    save_program(model, (96, 96), folder)
    program = DetectorProgram(folder, 1)
    engine = program.complete_engine()

    def predict(batch: dict[str, Any]) -> list[Detections]:
        return program.boxes(engine({name: np.asarray(batch[name]) for name in IMAGE_INPUTS}))

    return predict


NEEDED = "neck.yolo_block.0.tip"


def all_but_one_needed(model: paddle.nn.Layer, batches: list[Any]) -> None:
    """Boxes only where every channel of one layer is there, except its first, the smallest.

    The layer's channels are the constant 1; objectness is 5 if all but the first are there,
    and 20 less for each that is missing. What other layers give is multiplied by zero.
    """
    enliven(model, batches)
    parameters = {name: p for name, p in model.named_parameters()}

    def change(name: str, **places: Any) -> None:
        value = parameters[name].numpy()
        value[places["at"]] = places["to"]
        parameters[name].set_value(value)

    for output in range(3):
        change(f"yolo_head.yolo_output.{output}.weight", at=slice(None), to=0.0)
        change(f"yolo_head.yolo_output.{output}.bias", at=slice(None), to=-20.0)
    first = parameters[f"{NEEDED}.conv.weight"].numpy()[0]
    change(f"{NEEDED}.conv.weight", at=0, to=1e-3 * first)
    change(f"{NEEDED}.batch_norm.weight", at=slice(None), to=0.0)
    change(f"{NEEDED}.batch_norm.bias", at=slice(None), to=1.0)
    channels = parameters[f"{NEEDED}.conv.weight"].shape[0]
    # One anchor's 9 numbers: x, y, w, h, objectness and four classes.
    change("yolo_head.yolo_output.0.weight", at=(4, slice(1, None)), to=20.0)
    bias = [0.0, 0.0, -1.5, -1.5, 5.0 - 20.0 * (channels - 1), 5.0, -20.0, -20.0, -20.0]
    change("yolo_head.yolo_output.0.bias", at=slice(0, 9), to=bias)


def test_known_losses(tiny: Path, shapes: Path, tmp_path: Path) -> None:
    """One of 64 channels goes at 0.016, two at 0.03: loss 0, then 1; elsewhere nothing counts."""
    detector = thin_detector(tmp_path / "detector", tiny, shapes, prepare=all_but_one_needed)
    others = ("neck.yolo_block.2.tip", "neck.yolo_block.0.conv_module.*")
    settings = Settings(ratios=(0.016, 0.03, 0.9), params=(NEEDED, *others))
    result = measured(detector.config, tmp_path / "out.json", settings)
    assert result.baseline == pytest.approx(1.0)
    assert result.request.channels[NEEDED] == 64
    losses = dict(result.groups)
    assert losses.pop(NEEDED) == {0.016: 0.0, 0.03: 1.0, 0.9: 1.0}
    assert len(losses) == 6
    assert all(loss == 0.0 for row in losses.values() for loss in row.values())


@pytest.mark.slow
def test_first_images_are_a_data_set_of_their_own(detector: Detector, tmp_path: Path) -> None:
    """Objects of later images do not count as missed."""
    copy = copy_detector(detector, tmp_path / "detector")
    four = measured(copy.config, tmp_path / "first.json", replace(TIPS, num_images=4))
    content = json.loads(copy.annotations.read_text())
    content["images"] = sorted(content["images"], key=lambda image: image["id"])[:4]
    ids = {image["id"] for image in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in ids]
    copy.annotations.write_text(json.dumps(content))
    alone = measured(copy.config, tmp_path / "alone.json", TIPS)
    assert four.conditions.num_images == alone.conditions.num_images == 4
    assert (four.ap, four.baseline) == (alone.ap, alone.baseline)


def test_small_cache_gives_the_same(detector: Detector, tips: Points, tmp_path: Path) -> None:
    """Six images in chunks of four and two."""
    found = measured(detector.config, tmp_path / "out.json", replace(TIPS, cache_mb=1))
    assert found.ap == tips
    lines = journal_path(tmp_path / "out.json").read_text().splitlines()[1:]
    keys = [json.loads(line)["key"] for line in lines]
    assert len(keys) == 2 * (6 + 1)
    assert {key.split()[1] for key in keys} == {"0:4", "4:6"}


@pytest.mark.slow
def test_shards_merge_to_the_single_run(detector: Detector, tips: Points, tmp_path: Path) -> None:
    """Each point in exactly one part, none in two."""
    parts = [
        measured(detector.config, tmp_path / f"{i}.json", replace(TIPS, shard=(i, 3)))
        for i in range(3)
    ]
    assert [part.request.shard for part in parts] == ["1/3", "2/3", "3/3"]
    points = [(n, r) for part in parts for n, row in part.groups.items() for r in row]
    assert len(points) == len(set(points)) == 6
    assert all(part.groups and not part.complete for part in parts)
    merged = merge_results(parts)
    assert merged.ap == tips and merged.complete


def test_bands_come_from_what_is_recorded(detector: Detector, tips: Points, output: Path) -> None:
    """Points and journal stay as they are; low is not above high."""
    journal = journal_path(output).read_bytes()
    found = measured(detector.config, output, replace(TIPS, bootstrap=20))
    assert journal_path(output).read_bytes() == journal
    assert found.ap == tips and found.bands.samples == 20
    spans = [
        found.bands.high[name][ratio] - low
        for name, row in found.bands.low.items()
        for ratio, low in row.items()
    ]
    assert len(spans) == 6 and min(spans) >= 0 and max(spans) > 0
