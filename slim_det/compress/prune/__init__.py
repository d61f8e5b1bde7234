"""Pruning: channel groups of a model, their importance, and the plan of what is removed."""
