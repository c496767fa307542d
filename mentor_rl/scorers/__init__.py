"""The small scorers of the emoji world and their training."""
