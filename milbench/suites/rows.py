"""The rows of a suite's table: aggregators with their parameters, recipes and labels, and which of them are asked for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from milbench import recipes
from milbench.errors import MilbenchError, from_validation, unknown
from milbench.spelling import literal, spelled
from milbench.suites.model import Search, Suite

if TYPE_CHECKING:
    from milbench import plugins

NO_CHANGES: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Row:
    """A row of a suite's table: an aggregator, and the values that its recipe has instead of the suite's.

    Args:
        name, label: as in plans and in tables.
        variant: the aggregator with its parameters.
        changes: values of the recipe.
        draw: number of the draw, in a suite that searches.
    """

    name: str
    label: str
    variant: plugins.Variant = field(hash=False)
    changes: Mapping[str, Any] = field(default_factory=dict, hash=False)
    draw: int | None = None

    def draws(self, search: Search) -> Iterator[Row]:
        """The row with the values of each draw; values that the row itself sets are not searched."""
        for draw in range(search.draws):
            values = search.values(draw)
            dropout = values.pop("dropout")
            variant = self.variant
            if "dropout" in variant.params and "dropout" not in variant.changes:
                variant = replace(variant, params={**variant.params, "dropout": dropout})
            yield replace(self, variant=variant, changes={**values, **self.changes}, draw=draw)


class SuiteRecipes:
    """The recipes of a suite: its own or the one that is asked for, changed on single datasets and in single rows.

    Args:
        suite: whose recipe it is.
        recipe: name of another recipe, without the suite's changes to its own.
        epochs: instead of the recipe's maximum.

    Raises:
        MilbenchError: the suite has recipe values for a dataset that is not in its grid.
    """

    def __init__(self, suite: Suite, recipe: str | None = None, epochs: int | None = None) -> None:
        self._suite = suite
        self._values: dict[str, Any] = {"name": recipe} if recipe else dict(suite.recipe)
        self._on: dict[str, dict[str, Any]] = self._values.pop("on", {})
        known = suite.grid.dataset if suite.grid else []
        if strangers := self._on.keys() - set(known):
            raise unknown(f"dataset in recipe.on of suite {suite.name}", min(strangers), known)
        if epochs is not None:
            self._values["max_epochs"] = epochs
            self._on = {dataset: {**values, "max_epochs": epochs} for dataset, values in self._on.items()}

    def values(self, dataset: str | None = None) -> dict[str, Any]:
        """The recipe's name and changed values, as all rows have them on this dataset."""
        return {**self._values, **self._on.get(dataset or "", {})}

    def of(
        self,
        variant: plugins.Variant,
        changes: Mapping[str, Any] = NO_CHANGES,
        *,
        dataset: str | None = None,
        has_validation: bool = True,
    ) -> recipes.Recipe:
        """The recipe that an aggregator is fitted with.

        Args:
            variant: the aggregator; under "official" each has values of its own.
            changes: values of its row.
            dataset: on which it is fitted; None leaves out what single datasets change.
            has_validation: whether the fold has a validation part.

        Raises:
            MilbenchError: no such recipe, or a value that is unknown or not allowed.
        """
        values = {**self.values(dataset), **changes}
        name = values.pop("name")
        try:
            return recipes.get(name, self._suite.task, has_validation=has_validation, official=variant.official, **values)
        except ValidationError as error:
            raise from_validation(error, f"suite {self._suite.name}: recipe") from error

    def row(self, text: str) -> Row:
        """Read `name[parameter=value,recipe.lr=value]`. A recipe value that the suite has anyway is left out, also of the name.

        Args:
            text: as a suite or the command line has it.

        Raises:
            MilbenchError: unknown aggregator, parameter or recipe value, with near misses.
        """
        from milbench import plugins  # loads torch, which a list of suites does not need

        name, _, inside = text.strip().partition("[")
        items = [item.strip() for item in inside.removesuffix("]").split(",")]
        parameters = [item for item in items if not item.startswith("recipe.")]
        if len(parameters) == len(items):
            variant = self._as_published(plugins.resolve(text))
            return Row(variant.name, variant.label, variant)
        variant = self._as_published(plugins.resolve(f"{name}[{','.join(parameters)}]"))
        asked = dict(_recipe_value(item, text) for item in items if item not in parameters)
        usual, changed = self.of(variant), self.of(variant, asked)
        changes = {key: getattr(changed, key) for key in asked if getattr(changed, key) != getattr(usual, key)}
        return Row(
            spelled(variant.entry.name, variant.changes | {f"recipe.{key}": value for key, value in changes.items()}),
            spelled(variant.entry.label, variant.changes | changes, " (", ", ", ")"),
            variant,
            changes,
        )

    def _as_published(self, variant: plugins.Variant) -> plugins.Variant:
        """Under "official" the parameters of the method's own script, where the row does not set them; the name stays."""
        if self._values["name"] != "official":
            return variant
        own = variant.official.get(self._suite.task, {}).get("params", {})
        return replace(variant, params={**variant.params, **{key: own[key] for key in own if key not in variant.changes}})


def _recipe_value(item: str, text: str) -> tuple[str, Any]:
    """`recipe.key=value` as key and value."""
    key, equals, value = (part.strip() for part in item.removeprefix("recipe.").partition("="))
    if not equals or not value:
        raise MilbenchError(f"cannot read {item!r} in {text!r}; write recipe.{key or 'lr'}=value")
    if key not in recipes.Recipe.model_fields:
        raise unknown(f"recipe value in {text!r}", key, recipes.Recipe.model_fields)
    return key, literal(value)


class SuiteRows:
    """The rows that a suite lists, and its own labels.

    Args:
        suite: with a grid.
        fitted: its recipes.

    Raises:
        MilbenchError: a row that cannot be read, or a label for a row that is not listed.
    """

    def __init__(self, suite: Suite, fitted: SuiteRecipes) -> None:
        self._fitted = fitted
        listed = [fitted.row(text) for text in suite.grid.aggregator] if suite.grid else []
        self.labels = {fitted.row(text).name: label for text, label in (suite.table.labels if suite.table else {}).items()}
        for name in self.labels.keys() - {row.name for row in listed}:
            raise unknown(f"row in suite {suite.name}, table.labels", name, [row.name for row in listed])
        self.listed = [self._labelled(row) for row in listed]

    def _labelled(self, row: Row) -> Row:
        return replace(row, label=self.labels.get(row.name, row.label))

    def chosen(self, wanted: Sequence[str] | None) -> list[Row]:
        """The rows of these names, each once; all that are listed where `wanted` is None."""
        rows = self.listed if wanted is None else [self._labelled(self._fitted.row(text)) for text in wanted]
        return list({row.name: row for row in rows}.values())

    def matching(self, text: str) -> list[str]:
        """Names of the listed rows with this label or name."""
        labelled = [row.name for row in self.listed if row.label == text]
        if labelled or not re.match(r"[a-z]", text):
            return labelled
        name = self._fitted.row(text).name
        return [row.name for row in self.listed if row.name == name]


def narrowed(
    suites: Sequence[Suite], wanted: Sequence[str] | None, *, recipe: str | None = None, epochs: int | None = None
) -> list[tuple[Suite, list[str] | None]]:
    """Which rows each of the suites runs when only some are wanted.

    A name or label that is a row of some of the suites stays in those, and no table gets a row that it did not have. What is a
    row of none is added to all. A suite of which nothing is wanted is left out.

    Args:
        suites: each with a grid.
        wanted: names, or labels as the tables print them; None leaves everything as it is.
        recipe, epochs: as :func:`milbench.suites.expand` takes them; they decide the names of rows with recipe values.

    Raises:
        MilbenchError: a name that is neither a row nor an aggregator, with near misses.
    """
    if wanted is None:
        return [(suite, None) for suite in suites]
    rows = [SuiteRows(suite, SuiteRecipes(suite, recipe, epochs)) for suite in suites]
    names: list[list[str]] = [[] for _ in suites]
    for text in wanted:
        matching = [of_suite.matching(text) for of_suite in rows]
        for chosen, here in zip(names, matching, strict=True):
            chosen += here if any(matching) else [text]
    return [(suite, chosen) for suite, chosen in zip(suites, names, strict=True) if chosen]
