"""Checkpoints of other projects: read without running their code, and written back bit for bit."""
