"""The artifact: written, checked before it is published, run, and converted for Paddle-Lite."""

# First, because importing it registers modules of this folder.
import ppdet  # noqa: F401
