"""Quantization: int8 detectors, trained or calibrated, and their scales."""

# First, because importing it registers modules of this folder.
import ppdet  # noqa: F401
