"""The command `milbench`, also as `python -m milbench`: obeys signals from its first line on, before anything heavy is loaded."""

from milbench import interrupt


def main() -> None:
    """Run the command line; its exit code ends the process."""
    interrupt.obey()
    from milbench.cli import main as command

    command()


if __name__ == "__main__":
    main()
