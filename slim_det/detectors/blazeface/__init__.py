"""Parts of BlazeFace detectors that ppdet lacks or has wrong."""

# First, because importing it registers the modules of this folder.
import ppdet  # noqa: F401
