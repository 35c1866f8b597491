"""One folder for each room of `milbench/`; `house/` holds the checks of the whole, `builders/` what tests make on the spot."""

from pathlib import Path

ROOT = Path(__file__).parents[1]  # the repository; `python -c` started here imports `tests`
