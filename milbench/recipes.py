"""Recipes: how a model is fitted. One recipe for all aggregators of a table is what makes the comparison fair."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from milbench.errors import unknown


class Recipe(BaseModel):
    """Everything about the fit that is not the aggregator or the data; part of a trial's identity.

    Batches are one bag, the order of bags is drawn anew each epoch.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    optimiser: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: float = Field(1e-4, gt=0)
    weight_decay: float = Field(1e-2, ge=0)
    max_epochs: int = Field(50, ge=1)
    patience: int | None = Field(
        10, ge=1, description="epochs without a better validation score before stopping; None never stops"
    )
    select: Literal["best on val", "last"] = Field("best on val", description="which epoch's model is tested")


# Learning rate, weight decay and batch of one are the LongMIL paper's (section 4, appendix A.5.3). It names no optimiser,
# number of epochs or selection rule: AdamW is the natural reading of a weight decay of 1e-2, the rest is ours.
_RECIPES: dict[str, dict[str, Recipe]] = {
    "paper": {
        "subtyping": Recipe(name="paper"),
        "survival": Recipe(name="paper", max_epochs=20, patience=None, select="last"),
    },
}

EPOCHS_WITHOUT_VALIDATION = 20


def names() -> list[str]:
    """Names of the recipes."""
    return sorted(_RECIPES)


def get(name: str, task: str, *, has_validation: bool = True, **changes: object) -> Recipe:
    """The recipe `name` for `task`, with `changes` to single values.

    Without a validation part there is nothing to select on: a fixed number of epochs is run and the last one tested.

    Raises:
        MilbenchError: no recipe of that name.
        pydantic.ValidationError: a change that is not a field or has a bad value.
    """
    if name not in _RECIPES:
        raise unknown("recipe", name, _RECIPES)
    values = _RECIPES[name][task].model_dump()
    if not has_validation:
        values.update(patience=None, select="last", max_epochs=EPOCHS_WITHOUT_VALIDATION)
    return Recipe.model_validate({**values, **changes})
