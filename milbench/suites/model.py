"""The form of a suite file."""

import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from milbench import recipes
from milbench.errors import MilbenchError, from_validation, unknown

HERE = Path(__file__).parent


class _Form(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Grid(_Form):
    """Every combination is one trial per fold.

    Args:
        dataset, encoder, magnification, patch_size, split: the columns; magnification and patch size stay out where
            they do not apply.
        fold: folds to run; all of the split unless given.
        seed: repetitions.
        aggregator: the rows, as `name` or `name[parameter=value]`.
        standardise: scale features with training-fold statistics.
    """

    dataset: list[str] = Field(min_length=1)
    encoder: list[str] = Field(min_length=1)
    magnification: list[int] = []
    patch_size: list[int] = []
    split: list[str] = Field(min_length=1)
    fold: list[int] | None = None
    seed: list[int] = Field(min_length=1)
    aggregator: list[str] = Field(min_length=1)
    standardise: bool = False


class Table(_Form):
    """How the report prints the suite.

    Args:
        name: file name of the table.
        columns: what the columns stand for, from left to right.
        metrics: in this order.
        groups: rows [first, last] between which no rule is drawn; a rule separates groups.
        reference: every other row is compared with this one, in the paired test.
    """

    name: str
    columns: list[Literal["dataset", "encoder", "magnification", "patch_size", "metric"]] = ["metric"]
    metrics: list[str] = Field(min_length=1)
    groups: list[tuple[str, str]] = []
    reference: str = "abmil"


class Suite(_Form):
    """A suite file: a grid of trials with a table, or a list of suites it is composed of, or both.

    Args:
        name: the file's name.
        title: one line for headings.
        reproduces: which table or figure of which paper.
        task: "subtyping" or "survival".
        includes: names of suites.
        recipe: `name` and changed values.
    """

    name: str
    title: str
    reproduces: str = ""
    task: Literal["subtyping", "survival"] = "subtyping"
    includes: list[str] = []
    grid: Grid | None = None
    recipe: dict[str, Any] = {"name": "paper"}
    table: Table | None = None

    @model_validator(mode="after")
    def _complete(self) -> "Suite":
        if self.grid is None and not self.includes:
            raise ValueError("a suite needs a [grid] or includes")
        if (self.grid is None) != (self.table is None):
            raise ValueError("[grid] and [table] belong together")
        return self


def names() -> list[str]:
    """Built-in suites."""
    return sorted(path.stem for path in HERE.glob("*.toml"))


def load(name: str) -> Suite:
    """The suite `name`: a built-in, or a path to a TOML file.

    Raises:
        MilbenchError: no such suite, or the file is wrong; says file, key and what is allowed.
    """
    path = Path(name) if name.endswith(".toml") else HERE / f"{name}.toml"
    if not path.is_file():
        raise MilbenchError(f"suite file {path} does not exist") if name.endswith(".toml") else unknown("suite", name, names())
    try:
        content = tomllib.loads(path.read_text())
        suite = Suite.model_validate({"name": path.stem, **content})
    except tomllib.TOMLDecodeError as error:
        raise MilbenchError(f"{path}: not TOML: {error}") from error
    except ValidationError as error:
        raise from_validation(error, path) from error
    if suite.recipe.get("name") not in recipes.names():
        raise unknown(f"recipe in {path}", str(suite.recipe.get("name")), recipes.names())
    return suite


def with_includes(suite: Suite) -> list[Suite]:
    """The suites that have a grid: those it includes, in order, then itself.

    Raises:
        MilbenchError: a suite includes itself, directly or not.
    """
    found: dict[str, Suite] = {}

    def visit(current: Suite, above: tuple[str, ...]) -> None:
        if current.name in above:
            raise MilbenchError(f"suite {current.name} includes itself: {' -> '.join([*above, current.name])}")
        for name in current.includes:
            visit(load(name), (*above, current.name))
        if current.grid is not None:
            found.setdefault(current.name, current)

    visit(suite, ())
    return list(found.values())
