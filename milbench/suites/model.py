"""The form of a suite file."""

import hashlib
import math
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from milbench import recipes
from milbench.errors import MilbenchError, from_validation, unknown
from milbench.files import read_toml
from milbench.names import Encoder, Name, checked
from milbench.trials.definition import Prediction, Table

HERE = Path(__file__).parent


Count = Annotated[int, Field(ge=0, lt=2**31)]
Value = str | int | float | bool | None | list[str | int | float]  # of a recipe


class _Form(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Grid(_Form):
    """Every combination is one trial per fold.

    Args:
        dataset, encoder, magnification, patch_size, split: the columns; magnification and patch size stay out where
            they do not apply or an encoder's features have one only.
        fold: folds to run; all of the split unless given.
        seed: repetitions.
        aggregator: the rows, as `name` or `name[parameter=value]`; `name[recipe.lr=1e-3]` changes the recipe of that row only.
        standardise: scale features with training-fold statistics; of all datasets, or of those that are named.
        dtype: what features are stored and read as before they become float32; part of a trial's identity.
    """

    dataset: list[Name] = Field(min_length=1)
    encoder: list[Encoder] = Field(min_length=1)
    magnification: list[Count] = []
    patch_size: list[Count] = []
    split: list[Name] = Field(min_length=1)
    fold: list[Count] | None = Field(None, min_length=1)
    seed: list[Count] = Field(min_length=1)
    aggregator: list[str] = Field(min_length=1)
    standardise: bool | list[str] = False
    dtype: Literal["float32", "float16"] = "float32"


class Search(_Form):
    """The same budget of random search for every method: each row is fitted once per draw, and validation chooses the draw.

    The values of a draw depend on its number only, so every method tries the same ones.

    Args:
        draws: how many.
        lr, weight_decay: ranges [low, high], drawn log-uniformly.
        dropout: range [low, high], drawn uniformly, for methods that have the parameter.
    """

    draws: int = Field(8, ge=1)
    lr: tuple[float, float]
    weight_decay: tuple[float, float]
    dropout: tuple[float, float]

    @model_validator(mode="after")
    def _ranges(self) -> "Search":
        for name, lowest in (("lr", 1e-12), ("weight_decay", 1e-12), ("dropout", 0.0)):
            low, high = getattr(self, name)
            if not lowest <= low <= high:
                raise ValueError(
                    f"{name} = [{low:g}, {high:g}] is not a range [low, high] with low <= high, both at least {lowest:g}"
                )
        return self

    def values(self, draw: int) -> dict[str, float]:
        """Learning rate, weight decay and dropout of the draw, to three digits."""

        def uniform(name: str) -> float:
            return int.from_bytes(hashlib.sha256(f"draw|{draw}|{name}".encode()).digest()[:8]) / 2**64

        def log_uniform(name: str) -> float:
            low, high = map(math.log, getattr(self, name))
            return float(f"{math.exp(low + (high - low) * uniform(name)):.3g}")

        low, high = self.dropout
        dropout = float(f"{low + (high - low) * uniform('dropout'):.3g}")
        return {"lr": log_uniform("lr"), "weight_decay": log_uniform("weight_decay"), "dropout": dropout}


class Suite(_Form):
    """A suite file: a grid of trials with a table, or a list of suites it is composed of, or both.

    Args:
        name: the file's name.
        title: one line for headings.
        reproduces: which table or figure of which paper.
        task: "subtyping" or "survival".
        includes: names of suites.
        recipe: `name` and changed values; `[recipe.on.<dataset>]` holds what is different on one dataset.
        search: a budget of random search for every row, instead of one recipe for all.
        made_by: the command that makes the suite's table or figure, where nothing is trained.
        expect: aggregator -> what its definition promises on each of `grid.dataset`, in that order, written down before anything
            is run: "pass", "partial" or "fail" of the report's capability matrix, "sees" for partial or pass, "open" for no
            prediction. For generated datasets, of which chance and the best score are known.
    """

    name: Name
    title: str
    reproduces: str = ""
    task: Literal["subtyping", "survival"] = "subtyping"
    includes: list[Name] = []
    grid: Grid | None = None
    recipe: dict[str, Value | dict[str, dict[str, Value]]] = {"name": "paper"}
    search: Search | None = None
    table: Table | None = None
    made_by: str = ""
    expect: dict[str, list[Prediction]] = {}

    @model_validator(mode="after")
    def _complete(self) -> "Suite":
        if not isinstance(self.recipe.get("name"), str) or not isinstance(self.recipe.get("on", {}), dict):
            raise ValueError("recipe needs a name; recipe.on has a table for each dataset")
        if self.grid is None and not self.includes and not self.made_by:
            raise ValueError("a suite needs a [grid] or includes")
        if self.search and self.grid is None:
            raise ValueError("[search] needs a [grid]")
        if (self.grid is None) != (self.table is None):
            raise ValueError("[grid] and [table] belong together")
        asked = self.grid.dataset if self.grid else []
        if wrong := [name for name, said in self.expect.items() if len(said) != len(asked)]:
            raise ValueError(
                f"expect needs one outcome for each of the {len(asked)} datasets; another number has {', '.join(wrong)}"
            )
        if self.expect and self.grid and (stray := [name for name in self.expect if name not in self.grid.aggregator]):
            raise ValueError(f"expect can only name aggregators of the grid, not {', '.join(stray)}")
        return self


def names() -> list[str]:
    """Built-in suites."""
    return sorted(path.stem for path in HERE.glob("*.toml"))


def sized(name: str, size: str | None) -> str:
    """The name of a suite's form of another size: `spatial` and "full" give `spatial-full`.

    Raises:
        MilbenchError: the suite has no such form.
    """
    if size is None:
        return name
    if (other := f"{name}-{size}") not in names():
        have = [known.removesuffix(f"-{size}") for known in names() if known.endswith(f"-{size}")]
        raise MilbenchError(f"suite {name} has no --{size} form; suites that have: {', '.join(have) or 'none'}")
    return other


def load(name: str) -> Suite:
    """The suite `name`: a built-in, or a path to a TOML file.

    Raises:
        MilbenchError: no such suite, or the file is wrong; says file, key and what is allowed.
    """
    if name.endswith(".toml"):
        path = Path(name)
    elif checked(name, "suite") in names():
        path = HERE / f"{name}.toml"
    else:
        raise unknown("suite", name, names())
    try:
        suite = Suite.model_validate({"name": path.stem, **read_toml(path, "suite file")})
    except ValidationError as error:
        raise from_validation(error, path) from error
    if suite.recipe["name"] not in recipes.names():
        raise unknown(f"recipe in {path}", str(suite.recipe["name"]), recipes.names())
    return suite


def whole(suite: Suite) -> list[Suite]:
    """The suites it includes, each once and in order, then itself.

    Raises:
        MilbenchError: a suite includes itself, directly or not.
    """
    suites: dict[str, Suite] = {}

    def visit(current: Suite, above: tuple[str, ...]) -> None:
        if current.name in above:
            raise MilbenchError(f"suite {current.name} includes itself: {' -> '.join([*above, current.name])}")
        for name in current.includes:
            visit(load(name), (*above, current.name))
        suites.setdefault(current.name, current)

    visit(suite, ())
    return list(suites.values())


def with_includes(suite: Suite) -> list[Suite]:
    """The suites that have a grid: those it includes, in order, then itself.

    Raises:
        MilbenchError: a suite includes itself, directly or not.
    """
    return [part for part in whole(suite) if part.grid is not None]
