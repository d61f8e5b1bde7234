"""Replaces `Trainer.export` and `Trainer.post_quant`: those of ppdet 2.6 do not run on Paddle 3."""

from __future__ import annotations

from typing import Any

import ppdet.engine.trainer as ppdet_trainer

from slim_det.compress.quantize.ptq import require_float
from slim_det.compress.quantize.record import record_of
from slim_det.compress.strategy import Context, postponed
from slim_det.core.errors import ConfigError
from slim_det.detectors.image_size import image_size_hw


def replace_trainer_export() -> None:
    """Replace ppdet's methods with the functions of this module."""
    ppdet_trainer.Trainer.export = _export
    ppdet_trainer.Trainer.post_quant = _post_quant


def _export(trainer: Any, output_dir: str = "output_inference") -> None:
    """Replaces `Trainer.export`."""
    # Imported here: `artifact` imports ppdet, whose import in turn loads this module.
    from slim_det.deploy.artifact import export_model

    waiting = postponed(trainer.model)
    if waiting is not None and record_of(trainer.model) is None:
        raise ConfigError(
            f"the model is still in float: {type(waiting).__name__} has not calibrated it; "
            "use tools/post_quant.py or `slim-det quantize`"
        )
    export_model(trainer.model, trainer.cfg, output_dir)


def _post_quant(trainer: Any, output_dir: str = "output_inference") -> None:
    """Replaces `Trainer.post_quant`: calibrate as configured, then export the int8 model."""
    from slim_det.deploy.accuracy_control import DeployedMetric
    from slim_det.deploy.artifact import export_model
    from slim_det.evaluate.data.check import check_dataset

    require_float(trainer.model)
    ptq = postponed(trainer.model)
    if ptq is None:
        raise ConfigError("no calibration is configured; expected --slim_config with slim: PTQ")
    check_dataset(trainer.cfg, "EvalDataset")
    in_float = DeployedMetric(trainer.model, trainer.cfg).in_float()
    ptq(trainer.model, Context(trainer.cfg, image_size_hw(trainer.cfg), "calibrate"))
    export_model(trainer.model, trainer.cfg, output_dir, in_float=in_float.ap)
