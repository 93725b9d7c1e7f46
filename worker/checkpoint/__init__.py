"""Reading and writing checkpoints, one tensor at a time."""
