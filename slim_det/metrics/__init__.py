"""Metrics: what ppdet computes, in one result that can be saved as JSON."""
