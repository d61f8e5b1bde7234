"""Files that were changed at random: exit code 0 or 2 and one line, never a traceback or a hang."""

from __future__ import annotations

import faulthandler
import json
import random
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.blazeface import draw_faces, write_blazeface
from tests.commands import Outcome, done

Cli = Callable[..., Outcome]
Mutate = Callable[[bytes, random.Random], bytes]

VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 3, 10**20, 0.5, -0.5, 1e30, float("nan"), float("inf"), "", "text", "1e3",
    [], {}, [1], [None], {"a": 1}, "../x",
)  # fmt: skip
PIECES = ("", " ", "0", "-1", "nan", "1e400", "é", "<", ">", "&", "</object>", "text", "\n", ":")
LIMIT_S = 60
"""Longest time for one command, before all threads are printed and the tests end."""


def mutate_bytes(content: bytes, rng: random.Random) -> bytes:
    """Flip, cut or insert bytes."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 4, 30))):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    if rng.random() < 0.2:
        changed = changed[: rng.randrange(len(changed))]
    return bytes(changed)


def mutate_text(content: bytes, rng: random.Random) -> bytes:
    """Remove, repeat or replace words, tags or lines."""
    parts = re.split(r"(<[^>]*>|\s+)", content.decode())
    at = rng.randrange(len(parts))
    choice = rng.random()
    if choice < 0.3:
        del parts[at : at + rng.choice((1, 1, 2, 5))]
    elif choice < 0.5:
        parts.insert(at, rng.choice(parts))
    else:
        parts[at] = rng.choice(PIECES)
    return "".join(parts).encode()


def places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every container of a tree with a key or an index in it."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        yield tree, key
        if isinstance(value, (dict, list)):
            yield from places(value)


def mutated_tree(tree: Any, rng: random.Random) -> Any:
    """Remove a key, rename it, or give it another value."""
    container, key = rng.choice(list(places(tree)))
    choice = rng.random()
    if choice < 0.3:
        del container[key]
    elif choice < 0.4 and isinstance(container, dict):
        container[rng.choice(("new", 3, f"{key}x"))] = container.pop(key)
    else:
        container[key] = rng.choice(VALUES)
    return tree


def mutate_json(content: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.2:
        return mutate_bytes(content, rng)
    return json.dumps(mutated_tree(json.loads(content), rng), default=str).encode()


def mutate_yaml(content: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.3:
        return mutate_text(content, rng)
    return yaml.safe_dump(mutated_tree(yaml.safe_load(content), rng)).encode()


@pytest.fixture(params=[pytest.param(1000, marks=pytest.mark.slow), 100], ids=["slow", "fast"])
def count(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def never_wrong(cli: Cli, count: int) -> Callable[..., None]:
    """Run a command with one file mutated again and again."""

    def run(path: Path, mutate: Mutate, *command: Any, share: int = 1) -> None:
        sound = path.read_bytes()
        done(cli(*command))
        codes = []
        for seed in range(count // share):
            path.write_bytes(mutate(sound, random.Random(seed)))
            faulthandler.dump_traceback_later(LIMIT_S, exit=True, file=sys.__stderr__)
            outcome = cli(*command)
            faulthandler.cancel_dump_traceback_later()
            shown = f"seed {seed}: {path.read_bytes()[-3000:]!r}\n{outcome.err}{outcome.out}"
            assert outcome.code in (0, 2), shown
            assert "Traceback" not in outcome.err + outcome.out, shown
            if outcome.code == 2:
                assert outcome.err.splitlines()[-1].startswith("slim-det "), shown
            codes.append(outcome.code)
        path.write_bytes(sound)
        assert 2 in codes

    return run


@pytest.fixture
def own(shapes: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shapes, tmp_path / "own"))


def in_folder(folder: Path) -> list[str]:
    return ["-o", *(f"{name}Dataset.dataset_dir={folder}" for name in ("Train", "Eval"))]


def test_voc(never_wrong: Callable[..., None], tiny_voc: Path, own: Path) -> None:
    xml = own / (own / "train.txt").read_text().split()[1]
    never_wrong(xml, mutate_text, "check", "-c", tiny_voc, *in_folder(own))
    never_wrong(xml, mutate_bytes, "check", "-c", tiny_voc, *in_folder(own))


def test_coco(never_wrong: Callable[..., None], tiny: Path, own: Path) -> None:
    path = own / "annotations" / "instances_val.json"
    never_wrong(path, mutate_json, "check", "-c", tiny, *in_folder(own))


def test_faces(never_wrong: Callable[..., None], tmp_path: Path) -> None:
    root = draw_faces(tmp_path / "faces", num_train=4, num_val=2)
    config = write_blazeface(tmp_path / "faces.yml", root)
    never_wrong(root / "train.txt", mutate_text, "check", "-c", config)
    never_wrong(root / "train.txt", mutate_bytes, "check", "-c", config)


def test_slim_file(
    never_wrong: Callable[..., None], tiny: Path, r578: Path, tmp_path: Path
) -> None:
    slim = Path(shutil.copy(r578, tmp_path / "slim.yml"))
    never_wrong(slim, mutate_yaml, "inspect", "-c", tiny, "--slim_config", slim, share=5)


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    """Path, without suffix, of a pruned checkpoint that a test may damage."""
    for path in trained.parent.glob(f"{trained.name}.*"):
        shutil.copy(path, tmp_path)
    return tmp_path / trained.name


@pytest.mark.parametrize(
    ("suffix", "mutate"), [("plan.json", mutate_json), ("pdparams", mutate_bytes)]
)
def test_checkpoint(
    never_wrong: Callable[..., None], tiny: Path, copied: Path, suffix: str, mutate: Mutate
) -> None:
    path = copied.with_name(f"{copied.name}.{suffix}")
    never_wrong(path, mutate, "eval", "-c", tiny, "-o", f"weights={copied}", share=5)


def test_quantized(
    cli: Cli, never_wrong: Callable[..., None], tiny: Path, trained: Path, tmp_path: Path
) -> None:
    """The record of a quantization, and the settings of the artifact."""
    folders = ("--output_dir", tmp_path / "out", "--save_dir", tmp_path / "saved")
    weights = ("-o", f"weights={trained}")
    done(cli("quantize", "-c", tiny, "--no_eval", "--images", 1, *folders, *weights))
    stem = tmp_path / "saved" / "tiny" / "quantized"
    record = stem.with_name("quantized.quant.json")
    never_wrong(record, mutate_json, "eval", "-c", tiny, "-o", f"weights={stem}", share=10)
    artifact = tmp_path / "out" / "tiny"
    (artifact / "slim_det.json").unlink()  # it would refuse any change of the settings
    run = ("eval", "-c", tiny, "--artifact", artifact)
    never_wrong(artifact / "infer_cfg.yml", mutate_yaml, *run, share=5)
