"""What others print and publish: a paper's numbers and errata (results/published), and CSV files of scores and predictions."""

from milbench.papers.printed import Erratum, Paper, Printed, PrintedTable, names, paper

__all__ = ["Erratum", "Paper", "Printed", "PrintedTable", "names", "paper"]
