"""Detectors and parts of detectors that ppdet lacks."""
