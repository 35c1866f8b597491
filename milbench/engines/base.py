"""What an engine tells while it works."""

from dataclasses import dataclass

from milbench.trials.store import Status


@dataclass(frozen=True)
class Started:
    """A worker took a trial."""

    trial_id: str


@dataclass(frozen=True)
class Epoch:
    """A trial finished an epoch. `row` is its row of the learning curve."""

    trial_id: str
    epoch: int
    row: dict[str, float | None]


@dataclass(frozen=True)
class Done:
    """A trial has a result."""

    trial_id: str
    status: Status
    reason: str | None = None


Event = Started | Epoch | Done
