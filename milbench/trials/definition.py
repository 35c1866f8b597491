"""The plans behind a suite, and what a report needs of their definitions: they may have been written elsewhere."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from milbench.errors import MilbenchError, from_validation
from milbench.names import Name
from milbench.trials import plan as plans
from milbench.trials.plan import Plan
from milbench.trials.store import Store

TABLE = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"  # goes into LaTeX as it stands


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow", allow_inf_nan=False)


class _Grid(_Part):
    aggregator: list[str]
    dataset: list[str] = []
    seed: list[int] = []


class Table(BaseModel):
    """How the report prints the suite.

    Args:
        name: file name of the table.
        top: a heading over all columns.
        columns: what the columns stand for, from left to right.
        metrics: in this order.
        heads: dataset, encoder, magnification, patch size, split or metric -> how its column is headed; an empty metric leaves
            the heading to the rest.
        groups: rows [first, last] between which no rule is drawn; a rule separates groups.
        reference: the row that every other is compared with in the paired test; AB-MIL where the reference has no result.
        labels: row -> how it is printed, where its parameters would say it worse.
        unit: what a sample is called, where it is neither a slide nor a case.
        published: the printed table that stands beside, as FILE/TABLE of results/published, or FILE.
        joined: title of the one table that suites with the same `published` make in a report that has them all.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name = Field(pattern=TABLE)
    top: str = ""
    columns: list[Literal["dataset", "encoder", "magnification", "patch_size", "split", "metric"]] = ["metric"]
    metrics: list[Name] = Field(min_length=1)
    heads: dict[str, str] = {}
    groups: list[tuple[str, str]] = []
    reference: str = "longmil"
    labels: dict[str, str] = {}
    unit: str = ""
    published: str = ""
    joined: str = ""


Prediction = Literal["pass", "partial", "fail", "sees", "open"]


class _Known(_Part):
    """Of a generated dataset; examples are maps of a negative and a positive slide, one letter a patch."""

    chance: float
    bayes: float
    oracle: float
    examples: tuple[list[str], list[str]]

    @field_validator("examples")
    @classmethod
    def _maps(cls, examples: tuple[list[str], list[str]]) -> tuple[list[str], list[str]]:
        for lines in examples:
            if not lines or len({len(line) for line in lines}) > 1 or set("".join(lines)) - set(".oABC") or not lines[0]:
                raise ValueError("a map has lines of one length, of the letters . o A B C")
        return examples


class _Definition(_Part):
    title: str
    reproduces: str = ""
    task: Literal["subtyping", "survival"] = "subtyping"
    includes: list[Name] = []
    grid: _Grid
    table: Table
    expect: dict[str, list[Prediction]] = {}
    known: dict[str, _Known] = {}

    @model_validator(mode="after")
    def _agree(self) -> "_Definition":
        if any(len(said) != len(self.grid.dataset) for said in self.expect.values()):
            raise ValueError("expect has one word for each dataset of the grid")
        if self.known and (lacking := set(self.grid.dataset) - self.known.keys()):
            raise ValueError(f"known says nothing of dataset {min(lacking)}")
        return self


class _Composed(_Part):
    title: str
    includes: list[Name] = []


def checked(definition: dict[str, Any], where: str, *, drawn: bool) -> dict[str, Any]:
    """The definition with everything that a report reads in it.

    Args:
        definition: of a plan.
        where: its file, for the message.
        drawn: the plan has cells, and so a grid and a table; else it only includes others.

    Raises:
        MilbenchError: something is missing, or of another type.
    """
    form = _Definition if drawn else _Composed
    try:
        return form.model_validate(definition).model_dump(mode="json")
    except ValidationError as error:
        raise MilbenchError(f"{from_validation(error, f'{where}: definition')}; remove it and run the suite again") from error


def leaves(store: Store, suite: str) -> list[Plan]:
    """The plans with cells behind `suite`, each once: those of the suites it includes, then its own.

    Raises:
        MilbenchError: the suite was not run into this store, or its plan cannot be drawn.
    """
    return [plan for plan in _whole(store, suite) if plan.cells]


def not_run(store: Store, suite: str) -> list[str]:
    """The included suites of which this store has nothing."""
    asked = [name for plan in _whole(store, suite) for name in _included(plan)]
    return [name for name in dict.fromkeys(asked) if not plans.path_of(store, name).exists()]


def _whole(store: Store, suite: str) -> list[Plan]:
    """The plan of the suite after those of the suites it includes, each once; a suite cannot include itself."""
    plan_of: dict[str, Plan] = {}

    def visit(name: str, above: tuple[str, ...]) -> None:
        if name in above:
            raise MilbenchError(f"{plans.path_of(store, name)}: the suite includes itself: {' -> '.join([*above, name])}")
        if name in plan_of:
            return
        plan = plans.read(store, name)
        definition = checked(plan.definition, str(plans.path_of(store, name)), drawn=bool(plan.cells))
        plan = plan.model_copy(update={"definition": definition})
        for below in _included(plan):
            if plans.path_of(store, below).exists():
                visit(below, (*above, name))
        plan_of[name] = plan

    visit(suite, ())
    return list(plan_of.values())


def _included(plan: Plan) -> list[str]:
    return [name.removesuffix(".toml") for name in plan.definition["includes"]]
