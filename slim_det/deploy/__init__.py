"""Artifacts: exporting, checking, running and converting them for Paddle-Lite."""

# First, because importing ppdet registers modules of this folder.
import ppdet  # noqa: F401
