"""The layers whose outputs a file's raw outputs are compared with."""

from __future__ import annotations

from typing import Any

import paddle
import pytest

from slim_det.deploy.checks import _head_paths
from slim_det.deploy.predictor import network_engine
from slim_det.evaluate.tensor_agreement import compare_tensors
from slim_det.graph.activations import ActivationRecorder, output_array
from slim_det.graph.trace import trace_program
from slim_det.training import session
from slim_det.training.config import load_config
from tests.configs.families import noise, settle
from tests.support import CONFIGS

SIZE_HW = (128, 128)


@pytest.mark.parametrize(
    ("config", "last"),
    [
        ("picodet/picodet_s_bccd", "head.cls_align.3.bn2"),
        ("families/gfl_r18_fpn", "head.gfl_head_reg"),
    ],
)
def test_they_compute_the_same(fresh_config: Any, config: str, last: str) -> None:
    """Also where a batch norm is behind the convolution, and where scales share a layer."""
    cfg = load_config(CONFIGS / f"{config}.yml")
    cfg["eval_size"] = None
    model = session.build_model(cfg)
    settle(model, SIZE_HW)
    program = trace_program(model, SIZE_HW)
    heads, modules = _head_paths(model, program), dict(model.named_sublayers())
    assert heads[-1] == last
    batch = noise(SIZE_HW)
    recorder = ActivationRecorder({path: modules[path] for path in heads}, output_array)
    with paddle.no_grad(), recorder.recording() as kept:
        model(dict(batch))
        calls = {path: iter(outputs) for path, outputs in kept.items()}
        expected = [next(calls[path]) for path in heads]
    network = network_engine(program, int8=False)
    assert network is not None
    found = compare_tensors([*network({"image": batch["image"].numpy()}).values()], expected)
    # Its smallest maps have four places, over which batch norm magnifies rounding.
    assert not found.fault and found.cosine > 0.999
