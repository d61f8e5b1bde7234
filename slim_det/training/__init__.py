"""What touches ppdet's Trainer: configuration, session, checkpoints, hooks."""
