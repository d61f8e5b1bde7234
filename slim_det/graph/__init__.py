"""A detector as a program: its operators, what they do to channels, edits, cost, and the engine."""
