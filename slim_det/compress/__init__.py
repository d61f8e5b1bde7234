"""What changes a model: pruning, quantization and distillation."""
