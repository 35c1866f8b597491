"""The command `milbench`, also as `python -m milbench`: obeys signals from its first line on, before anything heavy is loaded."""

import gc

from milbench import interrupt


def main() -> None:
    """Run the command line; its exit code ends the process."""
    interrupt.obey()
    gc.set_threshold(100_000, 50, 100)  # 100,000 trials stay: to look for rubbish among them takes a fifth of the time
    from milbench.cli import main as command

    command()


if __name__ == "__main__":
    main()
