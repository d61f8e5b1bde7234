"""Quantization: int8 detectors, trained or calibrated, and their scales."""
