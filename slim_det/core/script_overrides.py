"""The ``-o`` texts of a script that `python -m slim_det` runs."""

from __future__ import annotations

script_overrides: list[str] = []
"""They override the script's slim file. Empty if no script is run."""
