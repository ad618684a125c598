"""Losses, bounds and constants of the paper's theorems, on arrays."""
