"""A training that is run again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import paddle

from tests.forks import Forks


def test_same_seed_gives_the_same_weights(
    forks: Forks, tiny: Path, r578: Path, tmp_path: Path
) -> None:
    """Weights, order and augmentation, and so the cut; another seed gives others.

    Each training has a process of its own: at its end, the thread of its loader already reads the
    next epoch, and would draw from the random numbers of the next training.
    """
    states, plans = [], []
    for name, seed in (("one", 3), ("two", 3), ("other", 4)):
        saved = ("-o", f"save_dir={tmp_path / name}")
        arguments = ("-c", tiny, "--slim_config", r578, "--seed", seed, *saved)
        assert forks.run("train", *arguments) == 0, forks.error()
        stem = tmp_path / name / "tiny" / "model_final"
        states.append(paddle.load(f"{stem}.pdparams", return_numpy=True))
        plans.append(Path(f"{stem}.plan.json").read_text())
    for name, value in states[0].items():
        np.testing.assert_array_equal(value, states[1][name], err_msg=name)
    assert plans[0] == plans[1] != plans[2]
