"""`Trainer.export` and `Trainer.post_quant`: ppdet 2.6's own do not run on Paddle 3."""

from __future__ import annotations

from typing import Any

import ppdet.engine.trainer as ppdet_trainer

from slim_det.compress.quantize.ptq import quantize_post, require_float
from slim_det.compress.quantize.record import record_of
from slim_det.compress.quantize.strategy import post_quantizer_of
from slim_det.core.errors import ConfigError


def replace_trainer_export() -> None:
    """Put our functions behind ppdet's names."""
    ppdet_trainer.Trainer.export = _export
    ppdet_trainer.Trainer.post_quant = _post_quant


def _export(trainer: Any, output_dir: str = "output_inference") -> None:
    """`Trainer.export`."""
    # Not above: a program may import the artifact first, and that imports ppdet, which leads here.
    from slim_det.deploy.artifact import export_model

    if post_quantizer_of(trainer.model) is not None and record_of(trainer.model) is None:
        raise ConfigError(
            "the model is still in float: PTQ has not calibrated it; expected tools/post_quant.py "
            "or `slim-det quantize`"
        )
    export_model(trainer.model, trainer.cfg, output_dir)


def _post_quant(trainer: Any, output_dir: str = "output_inference") -> None:
    """`Trainer.post_quant`: calibrate as the slim file asks, then export the int8 model."""
    from slim_det.deploy.artifact import export_model

    require_float(trainer.model)
    ptq = post_quantizer_of(trainer.model)
    if ptq is None:
        raise ConfigError("no calibration is described; expected --slim_config with slim: PTQ")
    options = ptq.options(int(trainer.cfg["EvalReader"].get("batch_size", 1)))
    quantize_post(trainer.model, trainer.cfg, ptq.settings, options)
    export_model(trainer.model, trainer.cfg, output_dir)
