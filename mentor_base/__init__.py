"""The MENTOR model and its supervised training. Knows nothing of reinforcement learning or rewards."""
