"""A training that is run again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import paddle

from tests.commands import Outcome


def test_same_seed_gives_the_same_weights(
    cli: Callable[..., Outcome], tiny: Path, r578: Path, tmp_path: Path
) -> None:
    """Weights, order and augmentation, and so the cut; another seed gives others."""
    states, plans = [], []
    for name, seed in (("one", 3), ("two", 3), ("other", 4)):
        saved = ("-o", f"save_dir={tmp_path / name}")
        run = cli("train", "-c", tiny, "--slim_config", r578, "--seed", seed, *saved)
        assert run.code == 0, run.err
        stem = tmp_path / name / "tiny" / "model_final"
        states.append(paddle.load(f"{stem}.pdparams", return_numpy=True))
        plans.append(Path(f"{stem}.plan.json").read_text())
    for name, value in states[0].items():
        np.testing.assert_array_equal(value, states[1][name], err_msg=name)
    assert plans[0] == plans[1] != plans[2]
