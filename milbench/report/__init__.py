"""The report: results in, tables out. Reads results only and imports no torch."""

from milbench.report.build import Report, build, write

__all__ = ["Report", "build", "write"]
