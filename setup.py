"""Lets older tools install the project; everything it says is in pyproject.toml."""

from setuptools import setup

setup()
