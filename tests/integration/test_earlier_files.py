"""Files that version 0.1.0 wrote are read by today's code, and the same numbers come out.

They lie in `tests/data/earlier` with the numbers that 0.1.0 itself found (`figures.json`), and its
README says how each was made. Only commands and contents of files are used here.
"""

from __future__ import annotations

import json
import re
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import paddle
import pytest

from tests.commands import command, done
from tests.forks import Forks
from tests.support import ROOT, require_int8

EARLIER = ROOT / "tests" / "data" / "earlier"
FIGURES = json.loads((EARLIER / "figures.json").read_text(encoding="utf-8"))

DETECTOR, FACE = ("-c", "detector.yml"), ("-c", "face.yml")
PRUNED = (*DETECTOR, "-o", "weights=pruned/best_model")
QUANTIZED = (*DETECTOR, "-o", "weights=pruned_ptq/quantized")
FACE_QAT = (*FACE, "-o", "weights=face_qat/model_final")
MODELS = {
    "base": (*DETECTOR, "-o", "weights=base"),
    "plan": (*DETECTOR, "--slim_config", "plan.yml", "-o", "weights=base"),
    "pruned": PRUNED,
    "pruned_ptq": QUANTIZED,
    "face_qat": FACE_QAT,
    "face_qat_lsq": (*FACE, "-o", "weights=face_qat_lsq/model_final"),
    "artifacts/pruned": (*DETECTOR, "--artifact", "artifacts/pruned"),
    "artifacts/pruned_int8": (*DETECTOR, "--artifact", "artifacts/pruned_int8"),
    "artifacts/face_int8": (*FACE, "--artifact", "artifacts/face_int8"),
}
"""Name of what is measured in `figures.json` -> arguments of `eval`."""

AP_TOLERANCE = 0.005
"""Other kernels add in another order, which moves a score by 1e-6. At most a few of the 97 objects
then pass an IoU threshold that they missed before; one of them is 0.001 of AP. With oneDNN held to
SSE41, AVX2 and VNNI, 0.1.0 found the very same AP of everything but the int8 folders."""

FLOAT_BOXES = (1e-4, 0.01)
"""Score and pixels: sums of a few hundred products, in another order. Noise of 1e-7 in the images
moved them by 2e-7 and 1e-5."""

INT8_BOXES = (0.005, 0.2)
"""A value on the edge between two integers may fall to the other side: a step in some channel."""

LOSS_TOLERANCE = 1e-3
"""Relative. Sums in another order change 1e-6, an input that is rounded to its other side 1e-4;
half of the optimizer's state changes a loss of the second step by 5e-3."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the files, which commands may write beside."""
    copy = tmp_path_factory.mktemp("files") / "earlier"
    shutil.copytree(EARLIER, copy)
    return copy


@pytest.fixture(scope="module")
def forks(folder: Path) -> Iterator[Forks]:
    """A process with paddle imported, whose forks run the commands."""
    started = Forks(folder)
    yield started
    started.close()


@pytest.fixture(scope="module")
def run(forks: Forks) -> Callable[..., str]:
    """A command that has to go well, run in the folder; gives what it said."""

    def run_in_folder(*arguments: Any) -> str:
        assert forks.run(*arguments) == 0, forks.error()
        return (forks.folder / "stream1").read_text() + forks.error()

    return run_in_folder


@pytest.fixture(scope="module")
def figures_of(run: Callable[..., str], folder: Path) -> Callable[..., dict[str, Any]]:
    """The same; gives the figures of ``--json``."""

    def figures(*arguments: Any) -> dict[str, Any]:
        run(*arguments, "--json", "figures_of_today.json")
        return read(folder / "figures_of_today.json")

    return figures


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", MODELS)
def test_ap(figures_of: Callable[..., dict[str, Any]], name: str) -> None:
    """Checkpoints, a slim file of `ratios` and exported folders score as they did."""
    stored = FIGURES["eval"][name]
    found = figures_of("eval", *MODELS[name])
    for key in ("metric", "num_images", "engine"):
        assert found[key] == stored[key]
    scores = {"ap": found["ap"], **found["per_class"]}
    if name.startswith("artifacts/") and name.endswith("int8"):
        require_int8()
    assert scores == pytest.approx(stored["scores"], abs=AP_TOLERANCE)


def same_boxes(
    found: list[dict[str, Any]], stored: list[dict[str, Any]], limits: tuple[float, float]
) -> bool:
    """Whether every stored box (scores of 0.05 and more) is there, and no clear one besides."""

    def near(one: dict[str, Any], other: dict[str, Any]) -> bool:
        return (
            one["label"] == other["label"]
            and one["score"] == pytest.approx(other["score"], abs=limits[0])
            and one["bbox_xyxy"] == pytest.approx(other["bbox_xyxy"], abs=limits[1])
        )

    clear = [box for box in found if box["score"] >= 0.05 + limits[0]]
    return all(any(near(box, other) for other in found) for box in stored) and all(
        any(near(box, other) for other in stored) for box in clear
    )


@pytest.mark.parametrize(
    ("name", "weights", "artifact", "image", "limits"),
    [
        ("pruned", PRUNED, "pruned", "set/images/000008.jpg", FLOAT_BOXES),
        ("pruned_ptq", QUANTIZED, "pruned_int8", "set/images/000008.jpg", INT8_BOXES),
        ("face_qat", FACE_QAT, "face_int8", "faces/images/0--val/face_0.jpg", INT8_BOXES),
    ],
)
def test_boxes_of_an_image(
    figures_of: Callable[..., dict[str, Any]],
    name: str,
    weights: tuple[str, ...],
    artifact: str,
    image: str,
    limits: tuple[float, float],
) -> None:
    """Of the weights in dygraph, and of the exported folder in Paddle Inference."""
    shown = ("--infer_img", image, "--beside", f"artifacts/{artifact}", "--output_dir", "drawn")
    (found,) = figures_of("infer", *weights, *shown)["images"]
    stored = FIGURES["infer"][name]
    assert len(stored["boxes"]) > 20
    assert same_boxes(found["boxes"], stored["boxes"], limits)
    if artifact.endswith("int8"):
        require_int8()
    assert same_boxes(found["beside"], stored["beside"], limits)


def test_artifact_is_the_model_in_every_engine(
    figures_of: Callable[..., dict[str, Any]],
) -> None:
    """Weights, exported folder and its form for Paddle-Lite still belong together."""
    given = ("--artifact", "artifacts/face_int8", "--images", "faces/images/0--val/face_0.jpg")
    found = figures_of("verify", *FACE_QAT, *given, "--no_eval")
    stages = {stage["name"]: stage for stage in found["stages"]}
    assert found["passed"], stages
    assert stages["paddle inference"]["passed"] is True
    assert stages["paddle-lite program"]["cosine"] > 0.99999


def test_cost_of_a_slim_file(figures_of: Callable[..., dict[str, Any]]) -> None:
    """Counted, so equal to the last unit; size in megabytes included."""
    found = figures_of("inspect", *DETECTOR, "--slim_config", "plan.yml")
    assert {key: found[key] for key in ("before", "after")} == FIGURES["inspect"]


@pytest.mark.parametrize(
    ("target", "arguments"),
    [
        ("macs", ("--macs", 0.06)),
        ("latency", ("--latency", 0.006, "--table", "latency.json")),
    ],
)
def test_ratios(
    figures_of: Callable[..., dict[str, Any]], target: str, arguments: tuple[Any, ...]
) -> None:
    """From the losses and the latency table of 0.1.0; there is one best answer."""
    solve = ("ratios", *DETECTOR, "--sensitivity", "sensitivity.json", "--no_measure")
    found = figures_of(*solve, "--output", "plan_of_today.yml", *arguments)
    stored = FIGURES["ratios"][target]
    assert found["ratios"] == stored["ratios"]
    for key in ("predicted_ap", "latency_ms_before", "latency_ms_after"):
        assert found[key] == (stored[key] and pytest.approx(stored[key], rel=1e-6)), key
    for key in ("macs_before", "macs_after"):
        assert found[key] == stored[key], key


def same_text(written: Path, stored: Path) -> bool:
    """Whether a plan or a record was written as it had been read, version aside."""
    text, known = (path.read_text(encoding="utf-8") for path in (written, stored))
    pattern = r'("slim_det": )"[^"]*"'
    return re.sub(pattern, r"\1", text) == re.sub(pattern, r"\1", known)


def losses(said: str) -> list[dict[str, float]]:
    """Every loss of every step that a training has logged."""
    lines = [line for line in said.splitlines() if "Epoch: [" in line]
    return [
        {name: float(value) for name, value in re.findall(r"(\w*(?:loss|distill)\w*): (\S+)", line)}
        for line in lines
    ]


@pytest.mark.parametrize(
    ("name", "config", "checkpoint", "epochs", "slim"),
    [
        ("pruned", DETECTOR, "pruned/best_model", 4, ("--slim_config", "distill.yml")),
        ("face_qat", FACE, "face_qat/model_final", 2, ()),
        ("face_qat_lsq", FACE, "face_qat_lsq/model_final", 2, ()),
    ],
)
def test_training_goes_on(
    run: Callable[..., str],
    folder: Path,
    name: str,
    config: tuple[str, ...],
    checkpoint: str,
    epochs: int,
    slim: tuple[str, ...],
) -> None:
    """Two steps with the losses of 0.1.0: the second one needs the optimizer's state as well.

    The pruned student has an adaptor, whose weights are in a file of their own. Plan and record
    that are read are written again as they were.
    """
    settings = ("-o", f"save_dir=resumed/{name}", f"epoch={epochs}")
    said = run("train", *config, "-r", checkpoint, *slim, "--seed", 0, *settings)
    assert f"at epoch {epochs - 1}" in said
    found, stored = losses(said), FIGURES["train"][name]
    assert len(found) == len(stored) == 2
    for step, known in zip(found, stored):
        assert step == pytest.approx(known, rel=LOSS_TOLERANCE)
    saved = folder / "resumed" / name / config[1][: -len(".yml")] / "model_final"
    suffix = ".plan.json" if name == "pruned" else ".quant.json"
    assert same_text(Path(f"{saved}{suffix}"), folder / f"{checkpoint}{suffix}")
    files = {path.name.partition(".")[2] for path in (folder / checkpoint).parent.iterdir()}
    assert {path.name.partition(".")[2] for path in saved.parent.iterdir()} == files - {"json"}


def test_plan_and_record_are_kept_together(run: Callable[..., str], folder: Path) -> None:
    """A training that starts from the weights of `quantize` on a pruned model saves both."""
    start = ("-o", "pretrain_weights=pruned_ptq/quantized", "save_dir=started")
    assert "29 layers quantized" in run("train", *DETECTOR, "--seed", 0, *start)
    saved = folder / "started" / "detector" / "model_final"
    for suffix in (".plan.json", ".quant.json"):
        assert same_text(Path(f"{saved}{suffix}"), folder / f"pruned_ptq/quantized{suffix}")


def test_best_model_is_remembered(folder: Path) -> None:
    """AP of `best_model.json` is what a resumed run has to reach, in a process of its own."""
    shutil.copytree(folder / "pruned", folder / "best" / "detector")
    resumed = ("-r", "best/detector/best_model", "--eval", "-o", "save_dir=best", "epoch=4")
    run = done(command("train", *DETECTOR, *resumed, cwd=folder, OMP_NUM_THREADS="1"))
    ((ap, best),) = re.findall(r"AP (0\.\d+), best so far (0\.\d+)", run.out + run.err)
    stored = read(EARLIER / "pruned" / "best_model.json")["ap"]
    assert float(best) == pytest.approx(max(stored, float(ap)), abs=5e-5)


def without_clock(path: Path) -> dict[str, Any]:
    """A sensitivity file without the time it took and the version that wrote it."""
    return {key: x for key, x in read(path).items() if key not in ("seconds", "slim_det")}


def test_parts_are_merged(run: Callable[..., str], folder: Path) -> None:
    """Two parts are the file of one run, to the last digit."""
    run("sensitivity", "--merge", "part1.json", "part2.json", "--output", "merged.json")
    assert without_clock(folder / "merged.json") == without_clock(folder / "sensitivity.json")


def journal_line(record: dict[str, Any]) -> bytes:
    """A line of a journal as docs/sensitivity.md describes it."""
    text = json.dumps(record, sort_keys=True, separators=(",", ":"))
    return f'{text[:-1]},"crc":{zlib.crc32(text.encode())}}}\n'.encode()


def test_journal_is_continued(run: Callable[..., str], folder: Path) -> None:
    """Only the five points that are missing are measured.

    Two recorded points have changed places, which only a run that reads them can know. Where the
    version of slim_det or of Paddle is another one now, the header is given today's, so that the
    digests of model, weights, data and configuration are compared in any case.
    """
    journal = folder / "half" / "sensitivity.journal.jsonl"
    *lines, cut_short = journal.read_bytes().splitlines()
    header, baseline, *points = (json.loads(line) for line in lines)
    for record in (header, baseline, *points):
        del record["crc"]
    assert [journal_line(record)[:-1] for record in (header, baseline, *points)] == lines
    header["slim_det"] = run("--version").split()[-1]
    header["paddle"] = paddle.__version__
    first, last = points[0], points[-1]
    first["value"], last["value"] = last["value"], first["value"]
    before = b"".join(journal_line(record) for record in (header, baseline, *points))
    journal.write_bytes(before + cut_short)

    grid = ("--params", "*.tip", "*.conv1", "--ratios", 0.3, 0.6)
    output = ("--output", "half/sensitivity.json")
    said = run("sensitivity", *DETECTOR, "-o", "weights=base", *grid, *output)

    assert "7 of 12 points are already recorded" in said and "cut short" in said
    after = journal.read_bytes()
    assert after.startswith(before)
    assert len(after.splitlines()) == 2 + 12
    found, stored = read(folder / "half" / "sensitivity.json"), read(folder / "sensitivity.json")
    for key in ("baseline", "num_images", "metric", "fingerprint", "channels", "group_order"):
        assert found[key] == stored[key], key
    swapped = [record["key"].split()[0].split("@") for record in (first, last)]
    (name, ratio), (other, other_ratio) = swapped
    for table in ("groups", "ap"):
        known = {group: dict(row) for group, row in stored[table].items()}
        known[name][ratio], known[other][other_ratio] = (
            stored[table][other][other_ratio],
            stored[table][name][ratio],
        )
        assert known[name][ratio] != stored[table][name][ratio]
        for group, row in known.items():
            assert found[table][group] == pytest.approx(row, abs=AP_TOLERANCE)
        assert found[table][name][ratio] == known[name][ratio]
