"""The command `milbench`, also as `python -m milbench`: obeys signals from its first line on, before anything heavy is loaded."""

import os
import sys

from milbench import interrupt


def main() -> None:
    """Run the command line; its exit code ends the process."""
    try:
        with interrupt.obeyed(last=True):
            from milbench.cli import main as command

            command()
    except interrupt.Stopped as stopped:
        sys.stderr.flush()
        os._exit(stopped.code)  # threads that still compute cannot hold it up


if __name__ == "__main__":
    main()
