"""Checkpoints on disk: one tensor at a time, both ways."""
