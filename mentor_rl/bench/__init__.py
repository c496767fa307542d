"""Measurements behind ``mentor bench``: speed, memory and shares, each of the code that does the work."""
