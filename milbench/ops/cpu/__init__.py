"""Kernels of operations for the CPU, compiled on first use."""
