"""Changes of a model: pruning, quantization and distillation."""

# First, because importing it registers modules of this folder.
import ppdet  # noqa: F401
