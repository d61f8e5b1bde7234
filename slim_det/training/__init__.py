"""Everything around ppdet's Trainer: configuration, session, checkpoints, patches."""

# First, because importing it registers modules of this folder.
import ppdet  # noqa: F401
