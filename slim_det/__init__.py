"""slim_det: compression of PaddleDetection's YOLOv3 and BlazeFace detectors.

Importing it registers its components with ppdet, under the names used in YAML files, as soon as
ppdet itself is imported. Nothing large is imported here.
"""

from slim_det.core.import_hook import when_imported
from slim_det.version import __version__


def _register() -> None:
    from slim_det.deploy.trainer_export import replace_trainer_export
    from slim_det.training.ppdet_patches import register_components

    register_components()
    replace_trainer_export()


when_imported("ppdet", _register)

__all__ = ["__version__"]
