"""Hooks: what watches training. One a file, named by what it does."""

# First, because importing it puts a module of this folder in its place.
import ppdet  # noqa: F401
