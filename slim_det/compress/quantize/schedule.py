"""Schedule of a training that simulates int8: when ranges and statistics are frozen."""

from __future__ import annotations

import logging
import math
from typing import Any

from paddle.nn.layer.norm import _BatchNormBase

from slim_det.compress.hook import Hook
from slim_det.compress.quantize.model import quantized_layers
from slim_det.compress.quantize.record import record_of
from slim_det.core.errors import ConfigError, TrainingError

logger = logging.getLogger("slim_det")


class QuantSchedule(Hook):
    """Freezes the ranges and the batch norms of a quantized model, each from an epoch of its own.

    The epochs are in the record, so that a resumed training freezes them at the same time.

    Args:
        trainer: ppdet's Trainer, with a quantized model.

    Raises:
        ConfigError: The model is in float, or the training is to be compiled.
    """

    def __init__(self, trainer: Any) -> None:
        super().__init__(trainer)
        record = record_of(trainer.model)
        if record is None:
            raise ConfigError("the model is not quantized; 'slim' has to name QAT")
        self.refuse_to_static(
            "a quantized model cannot be trained with to_static: a compiled model is float"
        )
        self.freeze_epoch: int | None = record.origin.get("freeze_epoch")
        self.freeze_bn_epoch: int | None = record.origin.get("freeze_bn_epoch")
        self._borrowed: list[tuple[_BatchNormBase, Any]] = []

    def before_train_epoch(self, status: dict[str, Any]) -> None:
        """Freeze what is due, and log it once."""
        epoch = status["epoch_id"]
        if _is_due(self.freeze_epoch, epoch) and self._freeze_ranges():
            self._say(epoch, "ranges are frozen")
        if _is_due(self.freeze_bn_epoch, epoch) and self._freeze_norms():
            self._say(epoch, "batch norms keep their running statistics")

    def after_train_epoch(self, status: dict[str, Any]) -> None:
        """Raise `TrainingError` before a checkpoint with a range that is not finite is saved."""
        for name, layer in quantized_layers(self.trainer.model).items():
            if not math.isfinite(layer.activation.range()):
                raise TrainingError(
                    f"epoch {status['epoch_id']}: the range of '{name}' is not finite; the last "
                    "checkpoint stays as it was; try a smaller learning rate"
                )

    def on_train_end(self, status: dict[str, Any]) -> None:
        """Undo the freezing."""
        for norm, before in self._borrowed:
            norm._use_global_stats = before
        self._borrowed = []
        for quantizer in self._quantizers():
            quantizer.frozen = False

    def _freeze_ranges(self) -> bool:
        """Freeze all ranges; False if they are already frozen."""
        moving = [quantizer for quantizer in self._quantizers() if not quantizer.frozen]
        for quantizer in moving:
            quantizer.frozen = True
        return bool(moving)

    def _quantizers(self) -> list[Any]:
        """Quantizers whose own range can change: observed from inputs, or learned."""
        layers = quantized_layers(self.trainer.model).values()
        both = [quantizer for layer in layers for quantizer in (layer.activation, layer.weights)]
        return [quantizer for quantizer in both if hasattr(quantizer, "frozen")]

    def _freeze_norms(self) -> bool:
        """Freeze all batch norms; False if there are none or they are already frozen.

        The Trainer would undo ``norm.eval()`` at the start of every epoch.
        """
        if self._borrowed:
            return False
        norms = [x for x in self.trainer.model.sublayers() if isinstance(x, _BatchNormBase)]
        self._borrowed = [(norm, norm._use_global_stats) for norm in norms]
        for norm in norms:
            norm._use_global_stats = True
        return bool(norms)

    def _say(self, epoch: int, what: str) -> None:
        if self.is_main_process:
            logger.info("epoch %d: %s", epoch, what)


def _is_due(start: int | None, epoch: int) -> bool:
    return start is not None and epoch >= start
