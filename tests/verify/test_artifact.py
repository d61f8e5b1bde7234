"""A sound artifact passes every stage; each injected fault is found."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slim_det.core.errors import ExportError
from slim_det.deploy.lite.convert import has_paddlelite
from slim_det.deploy.predictor import Predictor
from slim_det.evaluate.images import image_batches
from slim_det.evaluate.preprocess import INPUTS
from slim_det.graph.program import DeployProgram
from slim_det.verify import backends as backends
from slim_det.verify import runners
from slim_det.verify.artifact import verify_artifact
from slim_det.verify.runners import noisy_runner, signed_runner
from slim_det.verify.stages import Limits, Stage, distances
from tests.commands import CONFIGS, Outcome
from tests.deploy.exported import Exported, export_pair, record_for
from tests.support import ROOT, require_int8
from tests.trained import Detector, thin_detector
from tests.verify import faults

pytestmark = pytest.mark.usefixtures("fresh_config")

PRUNED = [pytest.param(f"pruned {kind}", marks=pytest.mark.slow) for kind in ("float", "int8")]


@pytest.fixture(scope="module")
def detector(
    tmp_path_factory: pytest.TempPathFactory, tiny: Path, shapes: Path, ppdet_registered: None
) -> Detector:
    return thin_detector(tmp_path_factory.mktemp("verify") / "thin", tiny, shapes)


@pytest.fixture(scope="module")
def exported(
    tmp_path_factory: pytest.TempPathFactory, detector: Detector, r578: Path
) -> Callable[[str], Exported]:
    """Artifacts by kind, made when first requested."""
    made: dict[str, Exported] = {}
    records = []

    def get(kind: str) -> Exported:
        if kind not in made:
            records.append(records[0] if records else record_for(detector.config))
            prefix = "pruned " if kind.startswith("pruned") else ""
            folder = tmp_path_factory.mktemp("exported")
            pair = export_pair(folder, detector.config, records[0], r578 if prefix else None)
            made[f"{prefix}float"], made[f"{prefix}int8"] = pair
        return made[kind]

    return get


@pytest.fixture
def no_lite(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave Paddle-Lite out, for speed."""
    monkeypatch.setattr(backends, "has_paddlelite", lambda: False)


def images_of(detector: Detector) -> list[str]:
    """Two images."""
    return [str(path) for path in sorted(detector.images.iterdir())[:2]]


def verify(made: Exported, folder: Path, detector: Detector, **options: Any) -> list[Stage]:
    cfg, model = made.load()
    return verify_artifact(
        model, cfg, folder, images_of(detector), **{"with_eval": False, **options}
    )


def failed(stages: list[Stage]) -> list[str]:
    return [stage.name for stage in stages if stage.passed is False]


@pytest.mark.parametrize("kind", ["float", "int8", *PRUNED])
def test_sound_artifact_passes(
    exported: Callable[[str], Exported], detector: Detector, kind: str, no_lite: None
) -> None:
    made = exported(kind)
    stages = verify(made, made.artifact, detector)
    assert failed(stages) == [], [str(stage) for stage in stages]
    by_name = {stage.name: stage for stage in stages}
    assert list(by_name) == [
        "preprocess",
        "dygraph",
        "exported program",
        "paddle inference",
        "paddle-lite x86",
    ]
    assert by_name["preprocess"].max_abs == by_name["dygraph"].max_abs == 0.0
    skipped = by_name["paddle-lite x86"]
    assert skipped.passed is None and skipped.note.startswith("skipped")
    least = 0.99 if "int8" in kind else 0.99999
    assert by_name["exported program"].cosine > least
    if "int8" in kind:
        require_int8()
    assert by_name["paddle inference"].cosine > least


PROGRAM_FAULTS = {
    "two output channels swapped": faults.swap_output_channels,
    "a bias zeroed": faults.zero_bias,
    "image channels swapped": faults.swap_image_channels,
}
INT8_FAULTS = {
    "a weight's scale doubled": faults.double_weight_scale,
    "an input's scale doubled": faults.double_input_scale,
}
CASES = [
    *((kind, fault) for kind in ("float", "int8") for fault in PROGRAM_FAULTS),
    *(("int8", fault) for fault in INT8_FAULTS),
    *(
        pytest.param(f"pruned {kind}", fault, marks=pytest.mark.slow)
        for kind, fault in (
            ("float", "two output channels swapped"),
            ("int8", "two output channels swapped"),
            ("int8", "a weight's scale doubled"),
        )
    ),
]


@pytest.mark.parametrize(("kind", "fault"), CASES)
def test_fault_in_the_program(
    exported: Callable[[str], Exported],
    detector: Detector,
    tmp_path: Path,
    kind: str,
    fault: str,
    no_lite: None,
) -> None:
    change = {**PROGRAM_FAULTS, **INT8_FAULTS}[fault]
    made = exported(kind)
    folder = faults.changed_program(made.artifact, tmp_path / "faulty", change)
    found = failed(verify(made, folder, detector))
    assert "exported program" in found and not {"preprocess", "dygraph"} & set(found)


@pytest.mark.parametrize(
    ("change", "passed"),
    [
        (faults.change_nothing, True),
        *((change, False) for change in (*PROGRAM_FAULTS.values(), *INT8_FAULTS.values())),
    ],
)
def test_noise_tells_rounding_from_faults(
    exported: Callable[[str], Exported],
    detector: Detector,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    no_lite: None,
    change: Callable[[Any], None],
    passed: bool,
) -> None:
    """Where a cosine is below the limit, which is above all of them here.

    Last digits move so small a net nowhere: it is noisy ten times harder.
    """
    monkeypatch.setattr(runners, "NOISE_STEP", 2e-5)
    monkeypatch.setattr(backends, "INT8_PROGRAM_LIMITS", Limits(cosine=1.1, ap=None))
    made = exported("int8")
    folder = faults.changed_program(made.artifact, tmp_path / "changed", change)
    stage = verify(made, folder, detector)[2]
    assert stage.name == "exported program" and stage.passed is passed, stage
    assert "times the model's own rounding noise" in stage.note


def test_last_digits_move_a_quantized_model(
    exported: Callable[[str], Exported], detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A little, the same each time; afterwards the model is as it was."""
    monkeypatch.setattr(runners, "NOISE_STEP", 2e-5)
    cfg, model = exported("int8").load()
    batches = [batch for _, batch in image_batches(cfg, images_of(detector))]
    batches = [{key: np.asarray(batch[key]) for key in INPUTS} for batch in batches]
    plain, noisy = signed_runner(model), noisy_runner(model, signed_runner(model))
    before, first, again, after = (run(batches) for run in (plain, noisy, noisy, plain))
    assert distances(first, again) == distances(before, after) == [0.0] * len(before[0].raw)
    assert all(0.0 < one < 0.05 for one in distances(first, before))


@pytest.mark.parametrize("kind", ["float", "int8"])
def test_reading_and_writing_is_no_fault(
    exported: Callable[[str], Exported],
    detector: Detector,
    tmp_path: Path,
    kind: str,
    no_lite: None,
) -> None:
    """What the injected faults add to the artifact is the fault alone."""
    made = exported(kind)
    folder = faults.changed_program(made.artifact, tmp_path / "same", faults.change_nothing)
    assert failed(verify(made, folder, detector)) == []


@pytest.mark.parametrize("kind", ["float", "int8"])
@pytest.mark.parametrize("change", [faults.normalize_twice, faults.swap_mean_and_deviation])
def test_fault_in_the_preparation_of_images(
    exported: Callable[[str], Exported],
    detector: Detector,
    tmp_path: Path,
    kind: str,
    change: Callable[[Any], None],
    no_lite: None,
) -> None:
    made = exported(kind)
    folder = faults.changed_settings(made.artifact, tmp_path / "faulty", change)
    found = failed(verify(made, folder, detector))
    assert {"preprocess", "exported program", "paddle inference"} <= set(found)


@pytest.mark.parametrize("kind", ["float", "int8"])
def test_normalization_inside_the_program(
    exported: Callable[[str], Exported],
    detector: Detector,
    tmp_path: Path,
    kind: str,
    no_lite: None,
) -> None:
    made = exported(kind)
    never = faults.changed_settings(made.artifact, tmp_path / "never", faults.normalize_nowhere)
    inside = faults.changed_program(never, tmp_path / "inside", faults.normalize_inside)
    stages = verify(made, inside, detector)
    assert failed(stages) == [] and stages[0].note == "the program normalises"


def test_normalization_that_is_done_twice_or_never(
    exported: Callable[[str], Exported], detector: Detector, tmp_path: Path, no_lite: None
) -> None:
    """By file and program, or by neither."""
    made = exported("float")
    never = faults.changed_settings(made.artifact, tmp_path / "never", faults.normalize_nowhere)
    twice = faults.changed_program(made.artifact, tmp_path / "twice", faults.normalize_inside)
    for folder in (never, twice):
        found = failed(verify(made, folder, detector))
        assert {"preprocess", "exported program", "paddle inference"} <= set(found)


def test_surrogate_normalizes_if_the_file_does(
    exported: Callable[[str], Exported], detector: Detector, tmp_path: Path
) -> None:
    """Its outputs are the same for the same image, whatever the configuration says."""
    made = exported("int8")
    never = faults.changed_settings(made.artifact, tmp_path / "never", faults.normalize_nowhere)
    inside = faults.changed_program(never, tmp_path / "inside", faults.normalize_inside)
    cfg, model = made.load()
    found = []
    for folder in (made.artifact, inside):
        program = DeployProgram.load(folder / "model")
        given = (model, cfg, folder, Predictor(folder), program, tmp_path)
        backend = next(b for b in backends.make_backends(*given) if b.name == "surrogate")
        backend.skipped = ""
        found.append(backend.run([backend.reader(images_of(detector)[0])])[0])
    for left, right in zip(found[0].raw, found[1].raw):
        assert np.abs(left - right).max() < 0.05 * np.abs(left).max()


def test_artifact_of_other_precision(
    exported: Callable[[str], Exported], detector: Detector, no_lite: None
) -> None:
    """Float weights against the int8 artifact, and the other way round."""
    for left, right in (("float", "int8"), ("int8", "float")):
        stages = verify(exported(left), exported(right).artifact, detector)
        assert "exported program" in failed(stages)


def test_ap_is_that_of_eval(
    exported: Callable[[str], Exported], detector: Detector, no_lite: None
) -> None:
    """Of all images, and of the first few."""
    from slim_det.evaluate.evaluation import dygraph_predictor, evaluate

    made = exported("float")
    stages = verify(made, made.artifact, detector, with_eval=True)
    cfg, model = made.load()
    truth = evaluate(cfg, dygraph_predictor(model), "dygraph", latency_runs=1).ap
    assert 0.5 < truth
    aps = [stage.ap for stage in stages]
    assert aps[0] is None and aps[-1] is None
    assert aps[1:-1] == pytest.approx([truth] * 3, abs=1e-6)
    few = verify(made, made.artifact, detector, with_eval=True, eval_images=2)
    assert few[1].ap is not None and failed(few) == []


def test_command(
    exported: Callable[[str], Exported],
    detector: Detector,
    tmp_path: Path,
    cli: Callable[..., Outcome],
    no_lite: None,
) -> None:
    """Exit code and figures of a sound artifact and of a faulty one."""
    made = exported("int8")
    faulty = faults.changed_program(made.artifact, tmp_path / "faulty", faults.zero_bias)
    for folder, code in ((made.artifact, 0), (faulty, 1)):
        outcome = cli(
            *("verify", "-c", made.config, "-o", f"weights={made.weights}"),
            *("--artifact", folder, "--no_eval", "--images", *images_of(detector)),
            *("--json", tmp_path / "figures.json"),
        )
        assert outcome.code == code, outcome.out + outcome.err
        figures = json.loads((tmp_path / "figures.json").read_text())
        assert figures["passed"] is (code == 0)
        keys = {"name", "max_abs", "cosine", "ap", "passed", "note"}
        assert all(set(stage) == keys for stage in figures["stages"])
        assert ("FAIL" in outcome.out) is (code == 1)


@pytest.mark.parametrize(
    ("flags", "phrase"),
    [
        (("--no_eval",), "add --artifact DIR"),
        (("--artifact", "gone", "--no_eval"), "artifact 'gone' has no model.pdmodel"),
        (("--artifact", "gone", "--images", "x", "--infer_img", "y"), "give one"),
        (("--artifact", "gone", "--no_eval", "--images", "x.jpg"), "1 missing image: 'x.jpg'"),
    ],
)
def test_command_that_is_refused(
    exported: Callable[[str], Exported],
    cli: Callable[..., Outcome],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: tuple[str, ...],
    phrase: str,
) -> None:
    made = exported("float")
    monkeypatch.chdir(tmp_path)
    outcome = cli("verify", "-c", made.config, "-o", f"weights={made.weights}", *flags)
    assert outcome.code == 2 and phrase in outcome.err, outcome.err
    assert len(outcome.err.splitlines()) == 1


@pytest.mark.skipif(not has_paddlelite(), reason="paddlelite is not installed")
def test_paddle_lite_agrees(exported: Callable[[str], Exported], detector: Detector) -> None:
    made = exported("float")
    stage = verify(made, made.artifact, detector, with_eval=True, eval_images=2)[-1]
    assert stage.name == "paddle-lite x86" and stage.passed, stage
    assert stage.cosine > 0.99999 and stage.ap is not None


def test_a_detector_that_paddle_lite_does_not_take(
    exported: Callable[[str], Exported], detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said, and is no fault of a file for Paddle Inference."""

    def refuse(*args: Any) -> None:
        raise ExportError("the converter ended with signal 11")

    monkeypatch.setattr(backends, "lite_runner", refuse)
    monkeypatch.setattr(backends, "has_paddlelite", lambda: True)
    made = exported("float")
    stage = verify(made, made.artifact, detector)[-1]
    assert stage.name == "paddle-lite x86" and stage.passed is None
    assert stage.note == "skipped: the converter ended with signal 11"


@pytest.mark.slow
def test_trained_detector(
    tmp_path: Path, bccd: Path, bccd_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A detector that someone trained: every engine within half a point, every fault found."""
    config = CONFIGS / "yolov3_mobilenet_v1_bccd.yml"
    monkeypatch.chdir(ROOT)
    images = [str(path) for path in sorted((bccd / "JPEGImages").iterdir())[:8]]
    exact, integers = export_pair(tmp_path, config, record_for(config))
    for made in (exact, integers):
        cfg, model = made.load()
        stages = verify_artifact(model, cfg, made.artifact, images, eval_images=16)
        assert failed(stages) == [], stages
        assert has_paddlelite() == (stages[-1].passed is not None)
        assert all(stage.cosine > 0.999 for stage in stages if stage.passed is not None)
        ap = {stage.name: stage.ap for stage in stages}
        assert abs(ap["dygraph"] - ap["paddle inference"]) <= 0.005
    monkeypatch.setattr(backends, "has_paddlelite", lambda: False)
    cfg, model = integers.load()
    for number, change in enumerate([*PROGRAM_FAULTS.values(), *INT8_FAULTS.values()]):
        folder = faults.changed_program(integers.artifact, tmp_path / str(number), change)
        assert failed(verify_artifact(model, cfg, folder, images, with_eval=False)), change
        shutil.rmtree(folder)
