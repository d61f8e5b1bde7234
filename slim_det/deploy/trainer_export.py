"""`Trainer.export` and `Trainer.post_quant`: ppdet 2.6's own do not run on Paddle 3."""

from __future__ import annotations

from typing import Any

import ppdet.engine.trainer as ppdet_trainer

from slim_det.compress.quantize.ptq import require_float
from slim_det.compress.quantize.record import record_of
from slim_det.compress.strategy import Context, postponed
from slim_det.core.errors import ConfigError
from slim_det.detectors.image_size import image_size_hw


def replace_trainer_export() -> None:
    """Put our functions behind ppdet's names."""
    ppdet_trainer.Trainer.export = _export
    ppdet_trainer.Trainer.post_quant = _post_quant


def _export(trainer: Any, output_dir: str = "output_inference") -> None:
    """`Trainer.export`."""
    # Not above: a program may import the artifact first, and that imports ppdet, which leads here.
    from slim_det.deploy.artifact import export_model

    waiting = postponed(trainer.model)
    if waiting is not None and record_of(trainer.model) is None:
        raise ConfigError(
            f"the model is still in float: {type(waiting).__name__} has not calibrated it; "
            "expected tools/post_quant.py or `slim-det quantize`"
        )
    export_model(trainer.model, trainer.cfg, output_dir)


def _post_quant(trainer: Any, output_dir: str = "output_inference") -> None:
    """`Trainer.post_quant`: calibrate as the slim file asks, then export the int8 model."""
    from slim_det.deploy.artifact import export_model

    require_float(trainer.model)
    ptq = postponed(trainer.model)
    if ptq is None:
        raise ConfigError("no calibration is described; expected --slim_config with slim: PTQ")
    ptq(trainer.model, Context(trainer.cfg, image_size_hw(trainer.cfg), "calibrate"))
    export_model(trainer.model, trainer.cfg, output_dir)
