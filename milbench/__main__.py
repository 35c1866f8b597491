"""`python -m milbench` is the command `milbench`."""

from milbench.cli import main

main()
