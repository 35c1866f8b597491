"""Profiling: what operations, aggregators and reading cost on this machine."""
