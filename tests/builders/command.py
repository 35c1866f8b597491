"""The command line in this process."""

from click.testing import CliRunner

from milbench.cli import main


def milbench(*words, code=0):
    """Run `milbench word word ...` and expect this exit code; what it printed."""
    done = CliRunner().invoke(main, [str(word) for word in words])
    assert done.exit_code == code, done.output + repr(done.exception)
    return done.output
