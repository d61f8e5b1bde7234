"""Artifacts: exporting, checking, running and converting them for Paddle-Lite."""

# ppdet first: importing it registers components from this folder (see slim_det/__init__.py), which
# must not happen while one of its modules is only half loaded.
import ppdet  # noqa: F401
