"""What touches ppdet's Trainer: configuration, session, checkpoints, hooks."""

# First, because importing it registers modules of this folder.
import ppdet  # noqa: F401
