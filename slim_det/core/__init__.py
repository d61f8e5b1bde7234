"""What every layer needs and no detector: errors, files, safe YAML, processes."""
