"""What every aggregator must keep, as checks: the test suite runs them over the registry, authors run them on theirs."""

from milbench.contract.checks import CHECKS, Check, operations
from milbench.contract.faults import ContractError
from milbench.contract.repeats import in_other_processes, numbers, print_numbers, repeats

__all__ = ["CHECKS", "Check", "ContractError", "in_other_processes", "numbers", "operations", "print_numbers", "repeats"]
