"""The formulas of the theorems, on arrays."""
