"""slim_det: compression of PaddleDetection's YOLOv3 and BlazeFace detectors.

Importing it puts its components behind the names that ppdet's YAML files use, as soon as
ppdet itself is imported. Nothing heavy is imported here.
"""

from slim_det.plugin import install
from slim_det.version import __version__

install()

__all__ = ["__version__"]
