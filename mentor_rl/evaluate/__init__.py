"""Benchmarks: one file each, all returning the same Result."""
