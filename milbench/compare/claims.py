"""What a paper claims in numbers: its claims.toml, and the tables that the claims are about."""

import re
import tomllib
from functools import cache
from importlib.resources import files
from itertools import product
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from milbench import papers
from milbench.compare.evidence import OnPaper, Source
from milbench.errors import from_validation
from milbench.metrics import Column
from milbench.spelling import canonical

PRINTED = OnPaper(papers.paper("longmil_neurips2024"))


class _Form(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PaperTable(_Form):
    """A printed table or figure, or its half on one dataset; the suite that reproduces it; the runs behind each mean."""

    id: str
    suite: str
    runs: int = Field(ge=2)
    dataset: str = ""

    @property
    def source(self) -> Source:
        """For evidence."""
        return Source(self.id, self.suite, self.runs)

    @property
    def printed(self) -> str:
        """ "Table 1" for table1."""
        return re.sub(r"(\d+)", r" \1", self.id).capitalize()

    @property
    def layout(self) -> dict[str, Any]:
        """The [table] of the suite that reproduces it."""
        return dict(_suite(self.suite)["table"])

    @property
    def columns(self) -> list[Column]:
        """Its columns, those of the suite where no means are printed."""
        printed = [column for column in PRINTED.columns(self.id) if self.dataset in ("", column.dataset)]
        if printed:
            return printed
        grid = _suite(self.suite)["grid"]
        return [Column(*values) for values in product(*(grid.get(name) or [None] for name in Column._fields))]

    @property
    def metrics(self) -> list[str]:
        """Its metrics, those of the suite where no means are printed."""
        return PRINTED.metrics(self.id) or list(self.layout["metrics"])

    def rows(self, column: Column) -> list[str]:
        """The methods that the paper prints in a column, those of the suite where no means are printed."""
        return PRINTED.rows(self.source, column) or [canonical(row) for row in _suite(self.suite)["grid"]["aggregator"]]


class Claim(_Form):
    """One claim and its test; claims.toml says what the keys mean."""

    id: str
    where: str
    text: str
    kind: Literal["above", "not-below", "anova", "ratio", "exponent", "mixing", "width", "bands"]
    tables: list[str] = []
    metrics: list[str] = []
    upper: str = ""
    lower: list[str] = []
    pairs: list[tuple[str, str]] = []
    at: dict[str, Any] = {}
    upper_at: dict[str, Any] = {}
    lower_at: dict[str, Any] = {}
    less: dict[str, Any] = {}
    margin: float = Field(0.0, ge=0)
    stated: str = ""
    quantities: list[str] = []
    n: str = ""
    at_least: float | None = None
    at_most: float | None = None
    layers: tuple[str, str] = ("first", "first")

    @field_validator("upper", "lower", "pairs")
    @classmethod
    def _canonical(cls, names: Any) -> Any:
        """Methods in the one spelling in which they are compared."""
        return canonical(names) if isinstance(names, str) else type(names)(map(cls._canonical, names))

    @model_validator(mode="after")
    def _complete(self) -> "Claim":
        if self.is_difference and not self.pairs and not (self.upper and self.lower):
            raise ValueError("a difference needs upper and lower, or pairs")
        if (self.kind == "not-below") != (self.margin > 0):
            raise ValueError("not-below needs a margin, the other kinds have none")
        if (self.is_difference or self.kind == "anova") != bool(self.tables):
            raise ValueError("claims about tables name them, claims about measurements do not")
        if not self.tables and not self.quantities:
            raise ValueError("a claim about measurements names its quantities")
        if self.kind == "exponent" and (self.at_least is None) == (self.at_most is None):
            raise ValueError("an exponent is at_least or at_most something")
        return self

    @property
    def is_difference(self) -> bool:
        """Whether it is about a difference of metrics."""
        return self.kind in ("above", "not-below")


class Claims(_Form):
    """The whole of claims.toml."""

    table: list[PaperTable]
    claim: list[Claim]

    @model_validator(mode="after")
    def _known(self) -> "Claims":
        known = {table.id for table in self.table}
        for claim in self.claim:
            if missing := set(claim.tables) - known:
                raise ValueError(f"claim {claim.id} names {', '.join(sorted(missing))}, which no [[table]] has")
        if len({claim.id for claim in self.claim}) < len(self.claim):
            raise ValueError("two claims have the same id")
        return self

    def about(self, claim: Claim) -> list[PaperTable]:
        """The tables of a claim, in its order."""
        return [table for id in claim.tables for table in self.table if table.id == id]

    def words(self, table: PaperTable, column: Column) -> str:
        """What sets a column apart from the others of the printed table, in the table's words."""
        parts = [part for part in self.table if part.id == table.id]
        heads = {name: text for part in parts for name, text in part.layout.get("heads", {}).items()}
        others = [each for part in parts for each in part.columns]
        units, words = {"magnification": "x", "patch_size": " px"}, []
        for name, value in column._asdict().items():
            alike = [other for other in others if getattr(other, name) == value]
            if len(alike) < len(others):
                plain = str(value).upper() if name == "dataset" else f"{value}{units.get(name, '')}"
                words.append(heads.get(str(value)) or heads.get(f"{value}-survival") or plain)
            others = alike
        return ", ".join(words)


@cache
def load() -> Claims:
    """The claims.

    Raises:
        MilbenchError: claims.toml is wrong; says where.
    """
    try:
        return Claims.model_validate(tomllib.loads(PRINTED.paper.text("claims.toml")))
    except ValidationError as error:
        raise from_validation(error, "claims.toml") from error


@cache
def _suite(name: str) -> dict[str, Any]:
    """A built-in suite's file as it stands; milbench.suites would bring torch with it."""
    return tomllib.loads((files("milbench") / "suites" / f"{name}.toml").read_text(encoding="utf-8"))
