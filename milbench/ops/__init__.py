"""Tensor operations for long bags: exact, linear in memory, fast on a CPU, with GPU backends; each beside its naive twin."""
