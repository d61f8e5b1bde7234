"""Checks of a data set before training or evaluation."""
