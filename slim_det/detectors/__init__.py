"""What is known of a single detector: its layers, names, presets and strides."""
