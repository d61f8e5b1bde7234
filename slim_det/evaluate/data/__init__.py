"""Checks of a user's data set before anything is trained or measured on it."""
