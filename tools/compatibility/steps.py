"""The commands that are tried with each family, and what became of them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from families import Family

HERE = Path(__file__).parent
SHORT = (
    "use_gpu=false", "worker_num=0", "epoch=1", "TrainReader.batch_size=2", "pretrain_weights=",
    "LearningRate.base_lr=0.0001",
)  # fmt: skip
CUTTABLE = re.compile(r"groups that can be pruned: (.+?)% of .*read them: (.+?)%")


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        name: Column of the table.
        arguments: Family, its configuration and its folder -> arguments behind `slim-det`.
        needs: Step that has to have passed; '' for none.
    """

    name: str
    arguments: Callable[[Family, Path, Path], list[str]]
    needs: str = ""

    def command(self, family: Family, config: Path, folder: Path) -> list[str]:
        """Arguments behind `python`."""
        name, *others = self.arguments(family, config, folder)
        return ["-m", "slim_det.cli", name, "-c", str(config), *others]


@dataclass(frozen=True)
class Tried:
    """What became of a step.

    Attributes:
        code: Exit code; None if it was not run, -1 if it took too long.
        seconds: How long it took.
        reason: Why it failed; '' otherwise.
        cuttable: Percent of the MACs in groups that can be pruned, and with the layers that read
            them, if the command said so.
    """

    code: int | None = None
    seconds: float = 0.0
    reason: str = ""
    cuttable: str = ""

    @classmethod
    def of(cls, code: int, text: str, seconds: float) -> Tried:
        """Read the end of what a command printed."""
        lines = [line for line in text.splitlines() if line.strip()]
        errors = [
            line for line in lines if line.startswith(("slim-det ", "slim_det: error", "FAIL"))
        ]
        shares = CUTTABLE.search(text)
        return cls(
            code,
            round(seconds, 1),
            (errors or lines)[-1][:300] if code else "",
            " / ".join(shares.groups()) if shares and not code else "",
        )

    @classmethod
    def read(cls, folder: Path, step: str) -> Tried:
        """What became of it in an earlier run."""
        path = folder / f"{step}.json"
        return cls(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else cls()

    def write(self, folder: Path, step: str) -> None:
        """Keep it for `read`."""
        (folder / f"{step}.json").write_text(json.dumps(asdict(self)), encoding="utf-8")

    @property
    def passed(self) -> bool:
        """Whether it was run without an error."""
        return self.code == 0

    @property
    def cell(self) -> str:
        """Its cell of the table."""
        if self.code is None:
            return ""
        return {0: "yes", 2: "refused", -1: "too long"}.get(self.code, "no")

    def __str__(self) -> str:
        return f"{self.cell:8} {self.seconds:6.1f} s  {self.reason}"


def _overrides(family: Family, *settings: str) -> list[str]:
    return ["-o", *SHORT, *family.overrides, *settings]


def _trained(slim: str, saved: str) -> Callable[[Family, Path, Path], list[str]]:
    def arguments(family: Family, config: Path, folder: Path) -> list[str]:
        slim_file = ["--slim_config", str(HERE / slim)]
        return ["train", *slim_file, *_overrides(family, f"save_dir={folder / saved}")]

    return arguments


def _with_weights(
    name: str, *flags: str, weights: str = "cut/{stem}/model_final"
) -> Callable[[Family, Path, Path], list[str]]:
    def arguments(family: Family, config: Path, folder: Path) -> list[str]:
        given = [flag.format(folder=folder, stem=config.stem) for flag in flags]
        path = folder / weights.format(stem=config.stem)
        return [name, *given, *_overrides(family, f"weights={path}")]

    return arguments


STEPS = (
    Step("inspect", lambda family, config, folder: ["inspect", *_overrides(family)]),
    Step("train", _trained("prune.yml", "cut")),
    Step("verify", _with_weights("verify"), "train"),
    Step("qat", _trained("qat.yml", "qat")),
    Step(
        "quantize",
        _with_weights(
            "quantize", "--images", "4", "--no_eval", "--output_dir", "{folder}/int8",
            "--save_dir", "{folder}/int8_weights",
        ),
        "train",
    ),
    Step("export", _with_weights("export", "--output_dir", "{folder}/float"), "train"),
    Step("eval", _with_weights("eval", "--artifact", "{folder}/float/{stem}"), "export"),
    Step(
        "compare",
        _with_weights("verify", "--artifact", "{folder}/float/{stem}", "--no_eval"),
        "export",
    ),
    Step(
        "compare-int8",
        _with_weights(
            "verify", "--artifact", "{folder}/int8/{stem}", "--no_eval",
            weights="int8_weights/{stem}/quantized",
        ),
        "quantize",
    ),
)  # fmt: skip
