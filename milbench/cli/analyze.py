"""`milbench analyze`: figures that say why methods differ."""

from __future__ import annotations

import click


@click.group()
def analyze() -> None:
    """See why methods differ: rank, sparsity, heatmaps, sizes."""
