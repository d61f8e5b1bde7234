"""`slim-det sensitivity` as a user runs it: again, changed, killed, in parts, and with mistakes."""

from __future__ import annotations

import json
import os
import pickle
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slim_det.planning.sensitivity import analysis, measure
from slim_det.planning.sensitivity.partial_inference import DetectorProgram
from tests.commands import Outcome, done, files_below, lines_of
from tests.forks import Forks
from tests.trained import Detector, copy_detector

GRID = ("--params", "neck.yolo_block.2.*", "--ratios", "0.3", "0.6")
POINTS = 12
TIPS = ("--params", "*tip", "--ratios", "0.25", "0.7")


def read(path: Path) -> dict[str, Any]:
    """A result without what a clock says."""
    return {**json.loads(path.read_text()), "seconds": 0.0}


@pytest.fixture
def refused(cli: Callable[..., Outcome], in_folder: Path) -> Callable[..., str]:
    """A command that ends with exit code 2 and one line, and changes no file; gives the line."""

    def run(*arguments: Any) -> str:
        before = files_below(in_folder)
        outcome = cli("sensitivity", *arguments)
        assert files_below(in_folder) == before, outcome.err
        assert outcome.code == 2, outcome.err + outcome.out
        (line,) = outcome.err.splitlines()
        assert "Traceback" not in outcome.out
        return line

    return run


@pytest.fixture(scope="module")
def undisturbed(detector: Detector, forks: Forks) -> dict[str, Any]:
    """12 points, measured without a break."""
    output = forks.folder / "undisturbed" / "out.json"
    assert forks.run("sensitivity", "-c", detector.config, *GRID, "--output", output) == 0
    names = {path.name for path in output.parent.iterdir()}
    assert names == {"out.json", "out.png", "out.journal.jsonl"}
    return read(output)


def _random_moment(journal: Path, rng: random.Random) -> Callable[[], bool]:
    """Says when a moment has come: some lines further, or somewhere before the first of them."""
    more = rng.randrange(4)
    wanted = len(lines_of(journal)) + more
    delay_s = rng.random() * (0.1 if more else 5.0)
    reached: list[float] = []

    def is_over() -> bool:
        if not reached and len(lines_of(journal)) >= wanted:
            reached.append(time.monotonic())
        return bool(reached) and time.monotonic() - reached[0] > delay_s

    return is_over


def kill_and_finish(
    forks: Forks, detector: Detector, kills: int, seed: int, folder: Path
) -> dict[str, Any]:
    """Kill the command so many times at random moments, then let it end; gives its result.

    Images are read in a process of its own, which ends with the command.
    """
    output = folder / "out.json"
    journal = folder / "out.journal.jsonl"
    command = ("sensitivity", "-c", detector.config, *GRID, "--output", output)
    command += ("-o", "worker_num=1")
    rng = random.Random(seed)
    killed = 0
    while killed < kills:
        before = lines_of(journal)
        until = _random_moment(journal, rng)
        code = forks.run(*command, until=until)
        after = lines_of(journal)
        # Nothing that was recorded has gone, except for a last line that had been cut short.
        complete = [line for line in before if line.endswith(b"}")]
        assert after[: len(complete)] == complete
        if code == 0:
            for path in folder.iterdir():
                path.unlink()
            continue
        assert code == -signal.SIGKILL, forks.error()
        killed += 1
    assert forks.run(*command) == 0, forks.error()
    assert {path.name for path in folder.iterdir()} == {"out.json", "out.png", journal.name}
    keys = [json.loads(line).get("key") for line in lines_of(journal)]
    assert len(keys) == len(set(keys)) == 1 + 1 + POINTS  # header, baseline, points
    return read(output)


def test_killed_three_times(
    forks: Forks, detector: Detector, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    """Nothing is lost and the result is the same."""
    assert kill_and_finish(forks, detector, 3, 0, tmp_path) == undisturbed
    assert sum(len(row) for row in undisturbed["groups"].values()) == POINTS


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_killed_thirty_times(
    forks: Forks, detector: Detector, undisturbed: dict[str, Any], tmp_path: Path, seed: int
) -> None:
    """Ten times in each of three runs."""
    assert kill_and_finish(forks, detector, 10, seed, tmp_path) == undisturbed


def test_second_run_measures_nothing(
    cli: Callable[..., Outcome],
    detector: Detector,
    in_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The journal stays as it is, no image is run, and settings without effect may change.

    Another ratio is measured then, behind what is there.
    """
    command = ("sensitivity", "-c", detector.config, *TIPS)
    first_run = done(cli(*command))
    assert "all 6 points of 3 groups" in first_run.out
    first, journal = read(Path("sensitivity.json")), Path("sensitivity.journal.jsonl").read_bytes()

    def refuse(*arguments: Any) -> Any:
        raise AssertionError("an image was run")

    monkeypatch.setattr(measure, "_prepare", refuse)
    monkeypatch.setattr(DetectorProgram, "run_cuts", refuse)
    again = done(cli(*command, "-o", "worker_num=1", "save_dir=elsewhere"))
    assert "6 of 6 points are already recorded" in again.out
    assert read(Path("sensitivity.json")) == first
    assert Path("sensitivity.journal.jsonl").read_bytes() == journal
    monkeypatch.undo()
    monkeypatch.chdir(in_folder)
    done(cli(*command, "0.5"))
    longer = Path("sensitivity.journal.jsonl").read_bytes()
    assert longer.startswith(journal)
    assert len(longer.splitlines()) == len(journal.splitlines()) + 3


def scale_a_weight(copy: Detector) -> None:
    import paddle

    state = paddle.load(str(copy.weights))
    name = "neck.yolo_block.0.tip.conv.weight"
    state[name] = state[name] * 1.001
    paddle.save(state, str(copy.weights))


def touch_an_image(copy: Detector) -> None:
    path = min(
        copy.images / i["file_name"] for i in json.loads(copy.annotations.read_text())["images"]
    )
    path.write_bytes(path.read_bytes() + b"\0")


def test_another_measurement_is_not_continued(
    cli: Callable[..., Outcome], refused: Callable[..., str], detector: Detector,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    """The one line names what changed; the files of the first measurement stay."""
    copy = copy_detector(detector, tmp_path_factory.mktemp("changed") / "detector")
    command = ("-c", copy.config, "--params", "neck.yolo_block.2.tip", "--ratios", "0.5")
    done(cli("sensitivity", *command))
    line = refused(*command, "-o", "BBoxPostProcess.nms.nms_threshold=0.5", "--criterion", "fpgm")
    assert "belongs to another run" in line
    assert "config_sha256 changed" in line and "criterion changed" in line
    touch_an_image(copy)
    assert "data_sha256 changed" in refused(*command)
    scale_a_weight(copy)
    assert "weights_sha256 changed" in refused(*command)


def test_launched_processes_share_the_work(
    cli: Callable[..., Outcome],
    detector: Detector,
    undisturbed: dict[str, Any],
    in_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As Paddle's launcher sets it; merged, the parts are the single run."""
    command = ("sensitivity", "-c", detector.config, *GRID)
    monkeypatch.setenv("PADDLE_TRAINERS_NUM", "2")
    for number in range(2):
        monkeypatch.setenv("PADDLE_TRAINER_ID", str(number))
        done(cli(*command))
    parts = [Path(f"sensitivity.{i}of2.json") for i in (1, 2)]
    assert [read(part)["shard"] for part in parts] == ["1/2", "2/2"]
    assert not Path("sensitivity.json").exists()
    done(cli("sensitivity", "--merge", *parts, "--output", "merged.json"))
    assert read(Path("merged.json")) == undisturbed


@pytest.mark.slow
def test_two_workers_give_the_same_file(
    cli: Callable[..., Outcome], detector: Detector, in_folder: Path
) -> None:
    command = ("sensitivity", "-c", detector.config, *TIPS)
    done(cli(*command, "--output", "one.json"))
    done(cli(*command, "--workers", 2, "--output", "two.json"))
    assert read(Path("one.json")) == read(Path("two.json"))
    kept = {f"{n}{s}" for n in ("one", "two") for s in (".json", ".png", ".journal.jsonl")}
    assert {path.name for path in in_folder.iterdir()} == kept


@pytest.mark.slow
def test_killed_worker_is_one_line(
    cli: Callable[..., Outcome], detector: Detector, in_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Exit code 2; finished points are recorded, and the next run continues from them."""
    original = analysis.measure_cuts

    def killing(images: Any, program: Any, job: Any, finished: Any, *rest: Any) -> None:
        def report(key: str, value: Any) -> None:
            finished(key, value)
            next(iter(rest[1]._processes.values())).kill()

        original(images, program, job, report, *rest)

    command = ("sensitivity", "-c", detector.config, *GRID)
    monkeypatch.setattr(analysis, "measure_cuts", killing)
    run = cli(*command, "--workers", 2)
    assert run.code == 2
    # Paddle's first executor in a process that has not silenced it says so.
    (line,) = (text for text in run.err.splitlines() if "New Executor" not in text)
    assert "a worker ended with exit code -9" in line
    assert [path.name for path in in_folder.iterdir()] == ["sensitivity.journal.jsonl"]
    before = lines_of(in_folder / "sensitivity.journal.jsonl")
    assert len(before) > 2  # header, baseline and at least one point
    monkeypatch.undo()
    monkeypatch.chdir(in_folder)
    done(cli(*command))
    assert lines_of(in_folder / "sensitivity.journal.jsonl")[: len(before)] == before


CONFIG = "CONFIG"
"""Stands for the configuration, which only a fixture knows."""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "-c is missing: expected a configuration, --merge or --import_pickle"),
        (["-c", "missing.yml"], "missing.yml"),
        (["-c", CONFIG, "--params", "neck.yolo_block.0.tipp"], "mean 'neck.yolo_block.0.tip'?"),
        (["-c", CONFIG, "--params", "yolo_head.yolo_output.0"], "output.0' cannot be cut"),
        (["-c", CONFIG, "--ratios", "1.5"], "'1.5' is not strictly between 0 and 1"),
        (["-c", CONFIG, "--ratios", "0"], "'0' is not strictly between 0 and 1"),
        (["-c", CONFIG, "--ratios", "0.1:0.9"], "'0.1:0.9' is not start:end:step"),
        (["-c", CONFIG, "--ratios", "half"], "'half' is not a number"),
        (["-c", CONFIG, "--criterion", "l1_nrom"], "did you mean 'l1_norm'?"),
        (["-c", CONFIG, "--metric", "11point"], "--metric '11point' for metric COCO"),
        (["-c", CONFIG, "--shard", "4/3"], "shard '4/3'"),
        (["-c", CONFIG, "--output", "out.txt"], "expected a name that ends in .json"),
        (["-c", CONFIG, "--output", "/proc/none/out.json", "--params", "*tip"], "/proc/none"),
        (["-c", CONFIG, "-o", "weights=missing.pdparams"], "missing.pdparams"),
        (["-c", CONFIG, "-o", "weights="], "no weights are given"),
        (["-c", CONFIG, "-o", "EvalDataset.anno_path=none.json"], "none.json"),
        (["-c", CONFIG, "--merge", "a.json"], "cannot be combined with"),
        (["--merge", "missing.json"], "'missing.json' does not exist"),
        (["--import_pickle", "missing.data"], "'missing.data' cannot be read"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(
    refused: Callable[..., str], detector: Detector, arguments: list[str], message: str
) -> None:
    line = refused(*(detector.config if a == CONFIG else a for a in arguments))
    assert line.startswith("slim-det sensitivity: error: ") and message in line


@pytest.mark.parametrize("empty", ["images", "annotations"])
def test_empty_data_is_refused(
    refused: Callable[..., str], detector: Detector, in_folder: Path, empty: str
) -> None:
    content = json.loads(detector.annotations.read_text())
    content["annotations"] = []
    if empty == "images":
        content["images"] = []
    path = in_folder / "empty.json"
    path.write_text(json.dumps(content))
    line = refused("-c", detector.config, "-o", f"EvalDataset.anno_path={path}")
    assert f"'{path}' is not a COCO annotation file" in line


def test_model_that_finds_nothing_is_refused(
    refused: Callable[..., str], detector: Detector
) -> None:
    """Boxes of such a high score there are none."""
    high = (
        "-o",
        "BBoxPostProcess.decode.conf_thresh=1.0",
        "BBoxPostProcess.nms.score_threshold=1.0",
    )
    line = refused("-c", detector.config, *high)
    assert "the baseline coco_ap is 0.0000 on 6 images" in line


def test_files_of_two_models_do_not_merge(
    refused: Callable[..., str], undisturbed: dict[str, Any], in_folder: Path
) -> None:
    """The entry and both names are given."""
    for name, change in (("one", {}), ("other", {"fingerprint": "0" * 64})):
        (in_folder / f"{name}.json").write_text(json.dumps({**undisturbed, **change}))
    line = refused("--merge", "one.json", "other.json", "--output", "merged.json")
    assert "cannot be merged: fingerprint" in line


def test_file_that_is_no_result_does_not_merge(
    refused: Callable[..., str], in_folder: Path
) -> None:
    (in_folder / "odd.json").write_text("{}")
    assert "'odd.json' is not a sensitivity file" in refused("--merge", "odd.json")


def test_old_pickle_is_imported(cli: Callable[..., Outcome], in_folder: Path) -> None:
    """Historical names become paths, every loss is kept."""
    old = {"yolo_block.0.0.0.conv.weights": {0.1: 0.02, 0.5: 0.25}}
    Path("sensitivities.data").write_bytes(pickle.dumps(old, protocol=2))
    run = done(cli("sensitivity", "--import_pickle", "sensitivities.data", "--json", "copy.json"))
    result = read(Path("sensitivity.json"))
    name = "neck.yolo_block.0.conv_module.conv0"
    assert result["groups"] == {name: {"0.1": 0.02, "0.5": 0.25}}
    assert result["metric"] == "unknown" and result["baseline"] is None
    assert read(Path("copy.json")) == result
    assert name in run.out and Path("sensitivity.png").is_file()
    assert not list(in_folder.glob("*journal*"))


class Malicious:
    """Makes a file when it is unpickled by someone careless."""

    def __reduce__(self) -> Any:
        return os.system, ("touch was_run",)


def test_malicious_pickle_is_refused(refused: Callable[..., str], in_folder: Path) -> None:
    """Before anything in it is run; numpy's numbers are refused with a way out."""
    Path("bad.data").write_bytes(pickle.dumps({"conv.weights": {0.1: Malicious()}}))
    assert "could run code" in refused("--import_pickle", "bad.data")
    assert not Path("was_run").exists()
    Path("numpy.data").write_bytes(pickle.dumps({"conv.weights": {0.1: np.float64(0.5)}}))
    assert "numbers of numpy" in refused("--import_pickle", "numpy.data")
