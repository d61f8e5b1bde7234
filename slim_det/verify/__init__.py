"""Stage-by-stage verification of a model, from the checkpoint to the runtime of a phone."""
