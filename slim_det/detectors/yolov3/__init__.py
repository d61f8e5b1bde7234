"""Parts of YOLOv3 detectors that ppdet lacks."""

# First, because importing it registers the modules of this folder.
import ppdet  # noqa: F401
