"""Verify: one model from the checkpoint to the runtime of a phone, stage by stage."""
