"""Hooks: what watches training. One a file, named by what it does."""
