"""`milbench results`: hold stored results against themselves."""
import click


@click.group()
def results() -> None:
    """Hold stored results against themselves, and bring old ones over."""
