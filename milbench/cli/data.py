"""`milbench data`: say where features, labels and splits are, and check them before the first epoch."""

from __future__ import annotations

import click


@click.group()
def data() -> None:
    """Bring your own features, and check them."""
