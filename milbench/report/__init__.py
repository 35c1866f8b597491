"""The report: results in, tables, figures and a document out. Reads results only and imports no torch."""

from milbench.report.build import build
from milbench.report.model import Report
from milbench.report.site import write

__all__ = ["Report", "build", "write"]
