"""Sensitivity analysis: how much AP a detector loses when one group of channels is cut."""
