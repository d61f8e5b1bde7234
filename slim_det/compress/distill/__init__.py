"""Distillation: a detector that learns from another one beside its own labels."""
