"""The command `milbench`: one file for each verb. Each parses, calls :mod:`milbench.api` and shows what comes back.

Everything heavy is imported by the command that needs it, when it runs.
"""

from __future__ import annotations

import errno
from typing import Any

import click

from milbench import __version__, interrupt
from milbench.cli.analyze import analyze
from milbench.cli.check import check
from milbench.cli.compare import compare
from milbench.cli.data import data
from milbench.cli.ls import ls
from milbench.cli.new import new
from milbench.cli.profile import profile
from milbench.cli.report import report
from milbench.cli.results import results
from milbench.cli.run import run
from milbench.cli.status import status
from milbench.cli.work import work

# Errors of a folder that cannot be written to, not of the program.
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


class _Commands(click.Group):
    """Turns an error that the user can correct into one line and exit code 2, and obeys signals."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        with interrupt.obeyed():
            return super().main(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        from milbench.errors import MilbenchError
        from milbench.files import unusable

        try:
            return super().invoke(ctx)
        except MilbenchError as error:
            _refuse(ctx, error)
        except OSError as error:
            if error.filename is None and error.errno not in _UNWRITABLE:
                raise
            _refuse(ctx, unusable(error.filename or "a file", error))

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # in the order of use, not of the alphabet


def _refuse(ctx: click.Context, error: Exception) -> None:
    """The error in one line, of a length that can be read whatever it quotes."""
    from milbench.errors import printable

    text = "; ".join(map(printable, str(error).splitlines()))
    click.echo(f"milbench: {text if len(text) <= 1200 else f'{text[:700]} ... {text[-400:]}'}", err=True)
    ctx.exit(2)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__)
def main() -> None:
    """Which MIL aggregator should I use, and is the difference real?

    \b
    milbench run --suite quickstart       train and test; stops and continues at will
    milbench report --suite quickstart    tables in LaTeX, Markdown and CSV, with paired tests
    milbench compare abmil transmil       is the difference real?
    """


# In the order of `milbench --help`.
for _command in (run, work, status, report, compare, results, ls, data, check, analyze, profile, new):
    main.add_command(_command)
