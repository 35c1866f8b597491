"""Recipes: how a model is fitted. One recipe for all aggregators of a table is what makes the comparison fair."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from milbench.errors import MilbenchError, unknown


class Recipe(BaseModel):
    """Everything about the fit that is not the aggregator or the data; part of a trial's identity. Batches are one bag.

    Args:
        name: "paper", "official", "classic", or any other name.
        optimiser, lr, betas, weight_decay: as torch means them; sgd has momentum 0.9, lookahead-radam alpha 0.5 and k 6.
        decay_vectors: False leaves biases and norms without weight decay.
        schedule: "cosine" falls to `final_lr` by epochs, "cosine-per-step" by steps, "multistep" times `gamma` at each milestone.
        warmup_epochs: of linear warm-up.
        accumulate: bags whose mean gradient makes one step.
        clip: largest norm of the gradient.
        max_epochs, min_epochs, patience: training stops after `patience` epochs without a better one, never before `min_epochs`.
        select: which epoch's model is tested: highest validation metric or accuracy (ties: lower loss), lowest validation loss,
            or the last.
        select_after: epochs up to this one cannot be selected.
        sampling: "shuffle" shows each bag once an epoch, "class-balanced" draws as many with replacement, classes equally often.
        enough: training also stops after the epoch whose validation metric is at least this; None never does.
        epoch_bags: an epoch shows so many bags and the next goes on where it ended; None shows all.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str
    optimiser: Literal["adamw", "adam", "sgd", "lookahead-radam"] = "adamw"
    lr: float = Field(1e-4, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(1e-2, ge=0)
    decay_vectors: bool = True
    schedule: Literal["constant", "cosine", "cosine-per-step", "multistep"] = "constant"
    final_lr: float = Field(0.0, ge=0)
    milestones: tuple[int, ...] = ()
    gamma: float = Field(0.1, gt=0)
    warmup_epochs: int = Field(0, ge=0)
    accumulate: int = Field(1, ge=1)
    clip: float | None = Field(None, gt=0)
    max_epochs: int = Field(50, ge=1)
    min_epochs: int = Field(0, ge=0)
    patience: int | None = Field(10, ge=1)
    select: Literal["best on val", "best val accuracy", "best val loss", "last"] = "best on val"
    select_after: int = Field(0, ge=0)
    sampling: Literal["shuffle", "class-balanced"] = "shuffle"
    enough: float | None = None
    epoch_bags: int | None = Field(None, ge=1)

    @model_serializer(mode="wrap")
    def _plain(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves out fields that older trials do not have where they are None, so that those trials keep their identity."""
        values: dict[str, Any] = handler(self)
        return {key: value for key, value in values.items() if value is not None or key not in ("enough", "epoch_bags")}


# Learning rate, weight decay and batch of one are the LongMIL paper's (section 4, appendix A.5.3). It names no optimiser,
# number of epochs or selection rule: AdamW is the natural reading of a weight decay of 1e-2, the rest is ours.
_PAPER: dict[str, dict[str, Any]] = {"subtyping": {}, "survival": {"max_epochs": 20, "patience": None, "select": "last"}}

# What the AB-MIL paper (Ilse et al. 2018) used on the classic sets, transcribed without the paper at hand: SGD, 100 epochs, the
# epoch of the lowest validation error, of equals the lowest loss. Learning rate and weight decay differ by set: see the suite.
_CLASSIC: dict[str, Any] = {
    "optimiser": "sgd", "lr": 5e-4, "weight_decay": 5e-3, "max_epochs": 100, "patience": None, "select": "best val accuracy",
}  # fmt: skip

EPOCHS_WITHOUT_VALIDATION = 20


def names() -> list[str]:
    """Names of the recipes."""
    return ["classic", "official", "paper"]


def get(
    name: str,
    task: str,
    *,
    has_validation: bool = True,
    official: Mapping[str, Mapping[str, Any]] | None = None,
    **changes: object,
) -> Recipe:
    """The recipe `name` for `task`, with `changes` to single values.

    "official" is the method's own; a method that published none for the task gets "paper", under that name. "classic" is for
    subtyping on the classic MIL sets. Without a validation part there is nothing to select on: a fixed number of epochs is run
    and the last one tested.

    Args:
        name: "paper", "official" or "classic".
        task: "subtyping" or "survival".
        has_validation: whether the fold has a validation part.
        official: task -> values of the method's own recipe.

    Raises:
        MilbenchError: no recipe of that name, or none for the task.
        pydantic.ValidationError: a change that is not a field or has a bad value.
    """
    if name not in names():
        raise unknown("recipe", name, names())
    values: dict[str, Any] = {"name": "paper", **_PAPER[task]}
    if name == "official" and task in (official or {}):
        values = {"name": "official", **(official or {})[task]}
    if name == "classic":
        if task != "subtyping":
            raise MilbenchError(f"recipe classic is for subtyping, not for {task}; use paper")
        values = {"name": "classic", **_CLASSIC}
    if not has_validation and values.get("select") != "last":
        values |= {
            "patience": None,
            "select": "last",
            "min_epochs": 0,
            "select_after": 0,
            "max_epochs": EPOCHS_WITHOUT_VALIDATION,
        }
    return Recipe.model_validate({**values, **changes})
