"""Examples, tasks, mixtures and sources, and the embedded emoji world."""
