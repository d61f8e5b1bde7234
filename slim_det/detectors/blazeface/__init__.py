"""BlazeFace detectors, which ppdet lacks or has wrong: backbones, head, loss, crops of training."""

# First, because importing it registers the modules of this folder.
import ppdet  # noqa: F401
