"""The backends that a verification compares, and their limits."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import paddle

from slim_det.compress.quantize.model import program_ranges
from slim_det.compress.quantize.record import record_of
from slim_det.core.errors import SlimDetError
from slim_det.deploy.checks import FLOAT_COSINE
from slim_det.deploy.lite.convert import LITE_DIR, has_paddlelite
from slim_det.deploy.lite.forms import ONE_SIZE, lite_surrogate, surrogate_size
from slim_det.deploy.predictor import Predictor
from slim_det.detectors.image_size import has_open_size, image_size_hw
from slim_det.evaluate.preprocess import ArtifactReader, at_size
from slim_det.graph.engine import NO_INT8
from slim_det.graph.int8_program import for_kernels, int8_layers
from slim_det.graph.normalization import Normalization, read_normalization
from slim_det.graph.program import DeployProgram
from slim_det.verify.runners import (
    Batch,
    Runner,
    dygraph_runner,
    engine_runner,
    lite_runner,
    noisy_runner,
    program_runner,
    signed_runner,
    surrogate_runner,
)
from slim_det.verify.stages import Found, Limits

REFERENCE = "dygraph"
LITE_STAGE = "paddle-lite x86"

FLOAT_LIMITS = Limits(cosine=FLOAT_COSINE, same_boxes=True)
# Integers differ by one where a sum is close to a half. Wide models still reach 0.9999; narrow,
# deep ones with signed inputs have more rounding noise and are judged by it.
INT8_PROGRAM_LIMITS = Limits(cosine=0.999, ap=None)
INT8_ENGINE_LIMITS = Limits(cosine=0.99)
# Signed inputs have half as many steps after a ReLU, so they may lose one point of AP.
LITE_PROGRAM_LIMITS = Limits(cosine=0.999, ap=0.01)
SURROGATE_LIMITS = Limits(cosine=0.999, ap=None)
# The engine rounds differently from the model: to 255 steps after a ReLU, or not at all.
OTHER_ROUNDING_LIMITS = Limits(cosine=0.9)

_SIGNED = "dygraph, signed"
_NOISY_SIGNED = "dygraph, signed, rounding noise"
_NOISY = "dygraph, rounding noise"
_SIGNED_NOTE = "compared with the model with signed inputs, as Paddle and Paddle-Lite round"
_SURROGATE = "surrogate"
_SURROGATE_NOTE = (
    "7-bit x86 surrogate at {}x{}, compared with the same surrogate in Paddle Inference without "
    "oneDNN: Paddle-Lite's x86 kernels compute 8 bits and odd sizes incorrectly"
)
_ODD_MAPS = "Paddle-Lite's x86 kernels compute maps without a multiple of 16 values incorrectly"


@dataclass
class Backend:
    """One backend and its results so far.

    Attributes:
        name: Name of its stage.
        start: Creates its runner; called when it is first needed.
        limits: Limits that its outputs must satisfy.
        reference: Name of the backend that it is compared with.
        noise: Name of the backend that measures the model's rounding noise; '' for none.
        note: Note of its stage.
        is_model: Whether it is the model itself, whose images ``TestReader`` preprocesses.
        reader: Preprocesses its images; None for the artifact's reader.
        shown: Whether it has a stage of its own; otherwise it is only the reference of another.
        optional: Whether the artifact is right without it, if it cannot be started.
        error: Why it failed; '' if it did not.
        skipped: Why it cannot run on this machine; '' if it can.
        found: Its outputs for the compared images.
        matches: Matches of its detections with the objects of the evaluation images.
    """

    name: str
    start: Callable[[], Runner]
    limits: Limits
    reference: str = REFERENCE
    noise: str = ""
    note: str = ""
    is_model: bool = False
    reader: ArtifactReader | None = None
    shown: bool = True
    optional: bool = False
    error: str = ""
    skipped: str = ""
    found: list[Found] = field(default_factory=list)
    matches: list[Any] = field(default_factory=list)
    _runner: Runner | None = None

    @property
    def can_run(self) -> bool:
        """Whether it has neither failed nor is skipped."""
        return not self.error and not self.skipped

    def run(self, batches: Sequence[Batch]) -> list[Found]:
        """Outputs for some images; empty once the backend has failed."""
        if not self.can_run:
            return []
        try:
            if self._runner is None:
                self._runner = self.start()
            return self._runner(batches)
        except SlimDetError as error:
            if self.optional and self._runner is None:
                self.skipped = str(error)
            else:
                self.error = str(error)
        except (RuntimeError, ValueError, LookupError) as error:
            self.error = f"{type(error).__name__}: {' '.join(str(error).split())[-160:]}"
        return []


def make_backends(
    model: paddle.nn.Layer,
    cfg: Any,
    folder: Path,
    predictor: Predictor,
    program: DeployProgram,
    work: Path,
) -> list[Backend]:
    """Create all backends for an artifact; the model itself comes first.

    Args:
        model: The model that was exported.
        cfg: ppdet's configuration.
        folder: Folder of the artifact.
        predictor: Predictor of the artifact.
        program: Program of the artifact.
        work: Existing folder for temporary files.
    """
    reference = Backend(
        REFERENCE,
        lambda: dygraph_runner(model, program),
        Limits(1.0),
        note="the reference",
        is_model=True,
    )
    skipped = ONE_SIZE if has_open_size(cfg) else ""
    if not has_paddlelite():
        skipped = "this interpreter has no paddlelite"
    if record_of(model) is None:
        others = _float_backends(program, folder, predictor, work)
    else:
        others = _int8_backends(model, program, folder, predictor)
        inside, settings = read_normalization(program), predictor.settings
        size_hw, odd = image_size_hw(cfg), ""
        if not skipped:
            found = surrogate_size(model, size_hw)
            size_hw, odd = (found, "") if found else (size_hw, _ODD_MAPS)
        others += _surrogate_backends(model, size_hw, settings, inside, work, skipped or odd)
    for backend in others:
        if skipped and backend.name in (LITE_STAGE, _SURROGATE):
            backend.skipped = skipped
        # Paddle-Lite does not take every operator; that is a fault only of an artifact for it.
        backend.optional = backend.name == LITE_STAGE and not (folder / LITE_DIR).is_dir()
    return [reference, *others]


def _float_backends(
    program: DeployProgram, folder: Path, predictor: Predictor, work: Path
) -> list[Backend]:
    engine = functools.partial(engine_runner, predictor, program, int8=False)
    return [
        Backend("exported program", lambda: program_runner(program), FLOAT_LIMITS),
        Backend("paddle inference", engine, FLOAT_LIMITS, note="float, oneDNN"),
        *_lite_program(folder, FLOAT_LIMITS),
        Backend(LITE_STAGE, lambda: lite_runner(program, work / "lite"), FLOAT_LIMITS),
    ]


def _int8_backends(
    model: paddle.nn.Layer, program: DeployProgram, folder: Path, predictor: Predictor
) -> list[Backend]:
    """Backends of a quantized model.

    After a ReLU, Paddle Inference (and so the model) rounds to 0 to 255. Paddle's own operators and
    Paddle-Lite have only signed integers, so they are compared with the model with signed inputs.
    """
    record = record_of(model)
    unsigned = record is not None and record.settings.unsigned_inputs
    int8 = predictor.precision == "int8"
    same_steps = unsigned and int8
    engine = functools.partial(engine_runner, predictor, for_kernels(program, int8), int8=int8)

    def noisy(name: str, runner: Callable[..., Runner], reference: str) -> Backend:
        start = functools.partial(noisy_runner, model, runner(model, program))
        return Backend(name, start, Limits(1.0), reference, is_model=True, shown=False)

    return [
        Backend(
            _SIGNED, lambda: signed_runner(model, program), Limits(1.0), is_model=True, shown=False
        ),
        noisy(_NOISY_SIGNED, signed_runner, _SIGNED),
        *([noisy(_NOISY, dygraph_runner, REFERENCE)] if same_steps else []),
        Backend(
            "exported program",
            lambda: program_runner(program),
            INT8_PROGRAM_LIMITS,
            _SIGNED,
            _NOISY_SIGNED,
            _SIGNED_NOTE,
            error=_other_layers(model, program),
        ),
        Backend(
            "paddle inference",
            engine,
            INT8_ENGINE_LIMITS if same_steps else OTHER_ROUNDING_LIMITS,
            noise=_NOISY if same_steps else "",
            note="int8, oneDNN" if int8 else f"float: {NO_INT8}",
        ),
        *_lite_program(folder, LITE_PROGRAM_LIMITS, _SIGNED, _NOISY_SIGNED, _SIGNED_NOTE),
    ]


def _lite_program(
    folder: Path, limits: Limits, reference: str = REFERENCE, noise: str = "", note: str = ""
) -> list[Backend]:
    """The backend that runs the program for Paddle-Lite in Paddle; [] if the artifact has none."""
    stem = folder / LITE_DIR / "model"
    if not stem.with_suffix(".pdmodel").is_file():
        return []
    return [
        Backend(
            "paddle-lite program",
            lambda: program_runner(DeployProgram.load(stem)),
            limits,
            reference,
            noise,
            note,
        )
    ]


def _other_layers(model: paddle.nn.Layer, program: DeployProgram) -> str:
    """Describe the int8 layers in which an artifact and the model differ; '' if there are none."""
    found = set(int8_layers(program))
    wrong = sorted(found ^ set(program_ranges(model)))
    if not wrong:
        return ""
    is_int8 = "int8" if wrong[0] in found else "float"
    return f"{len(wrong)} layers differ from the model: '{wrong[0]}' is {is_int8}"


def _surrogate_backends(
    model: paddle.nn.Layer,
    size_hw: tuple[int, int],
    settings: dict[str, Any],
    inside: Normalization | None,
    work: Path,
    skipped: str,
) -> list[Backend]:
    """Backends for a quantized model in Paddle-Lite on x86, and its reference."""
    surrogate = functools.cache(lambda: lite_surrogate(model, size_hw, inside))
    reader = ArtifactReader(at_size(settings, size_hw))
    return [
        Backend(
            _SURROGATE,
            lambda: surrogate_runner(surrogate()),
            SURROGATE_LIMITS,
            reader=reader,
            shown=False,
            skipped=skipped,
        ),
        Backend(
            LITE_STAGE,
            lambda: lite_runner(surrogate(), work / "lite"),
            SURROGATE_LIMITS,
            _SURROGATE,
            _NOISY_SIGNED,
            _SURROGATE_NOTE.format(*size_hw),
            reader=reader,
            skipped=skipped,
        ),
    ]
