"""Recipes: how a model is fitted. One recipe for all aggregators of a table is what makes the comparison fair."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from milbench.errors import MilbenchError, unknown


class Recipe(BaseModel):
    """Everything about the fit that is not the aggregator or the data; part of a trial's identity. Batches are one bag.

    Args:
        name: "paper", "official", "classic", or any other name.
        optimiser, lr, betas, eps, weight_decay: as torch means them (eps None is torch's own); sgd has momentum 0.9,
            lookahead-radam alpha 0.5 and k 6.
        decay_vectors: False leaves biases and norms without weight decay.
        schedule: "cosine" falls to `final_lr` by epochs, "cosine-per-step" by steps, "multistep" times `gamma` at each milestone.
        warmup_epochs: of linear warm-up.
        accumulate: bags whose mean gradient makes one step: the sum of their gradients divided by this number.
        left_over: what becomes of the bags of an epoch after its last full step. "carry": counting runs on, and the first bags of
            the next epoch complete them. "restart": each epoch counts from one, but their gradient stays: the first step of
            the next epoch has it on top of its own, and with fewer bags than `accumulate` there is never a step. "flush": they
            make a step of their own at the end of the epoch, divided by `accumulate` all the same.
        clip: largest norm of the gradient.
        max_epochs, min_epochs, patience: training stops after `patience` epochs without a better one, never before `min_epochs`.
        select: which epoch's model is tested: highest validation metric, accuracy, or mean of accuracy and summed AUCs (of
            DS-MIL, see :func:`milbench.stats.accuracy_and_aucs`), lowest validation loss, or the last.
        ties: of equal epochs the one with the lower loss, of these the first; or the first or the last whatever the loss. The
            last of equals is a better epoch, so that `patience` starts anew.
        select_after: epochs up to this one cannot be selected.
        sampling: "shuffle" shows each bag once an epoch, "class-balanced" draws as many with replacement, classes equally often.
        enough: training also stops after the epoch whose validation metric is at least this; None never does.
        epoch_bags: an epoch shows so many bags and the next goes on where it ended; None shows all.
        optimistic_epochs: beside the honest result, the trial records the highest TEST accuracy of the first so many epochs, at
            the threshold that suits that test part best: how DS-MIL's numbers on the classic sets were made. It selects nothing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str
    optimiser: Literal["adamw", "adam", "sgd", "lookahead-radam"] = "adamw"
    lr: float = Field(1e-4, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float | None = Field(None, gt=0)
    weight_decay: float = Field(1e-2, ge=0)
    decay_vectors: bool = True
    schedule: Literal["constant", "cosine", "cosine-per-step", "multistep"] = "constant"
    final_lr: float = Field(0.0, ge=0)
    milestones: tuple[int, ...] = ()
    gamma: float = Field(0.1, gt=0)
    warmup_epochs: int = Field(0, ge=0)
    accumulate: int = Field(1, ge=1)
    left_over: Literal["carry", "restart", "flush"] = "carry"
    clip: float | None = Field(None, gt=0)
    max_epochs: int = Field(50, ge=1)
    min_epochs: int = Field(0, ge=0)
    patience: int | None = Field(10, ge=1)
    select: Literal["best on val", "best val accuracy", "best val accuracy and AUCs", "best val loss", "last"] = "best on val"
    ties: Literal["lower loss", "first", "last"] = "lower loss"
    select_after: int = Field(0, ge=0)
    sampling: Literal["shuffle", "class-balanced"] = "shuffle"
    enough: float | None = None
    epoch_bags: int | None = Field(None, ge=1)
    optimistic_epochs: int | None = Field(None, ge=1)

    @model_serializer(mode="wrap")
    def _plain(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves out fields that older trials do not have where they are unset, so that those trials keep their identity."""
        values: dict[str, Any] = handler(self)
        fields = type(self).model_fields
        return {key: value for key, value in values.items() if key not in _YOUNGER or value != fields[key].default}


_YOUNGER = {"enough", "epoch_bags", "eps", "left_over", "ties", "optimistic_epochs"}  # fields than the first trials


# Loops that several methods were published with. "source" and "not_followed" are for the reader of `milbench ls recipes`.
CLAM_LOOP: dict[str, Any] = {
    "optimiser": "adam", "lr": 2e-4, "weight_decay": 1e-5, "max_epochs": 200, "min_epochs": 52, "patience": 20,
    "select": "best val loss", "ties": "last", "sampling": "class-balanced",
    "source": "mahmoodlab/CLAM, main.py with the options of its README (--early_stopping --weighted_sample)",
    "not_followed": "",
}  # fmt: skip
HIPT_SUBTYPING_LOOP: dict[str, Any] = {
    "optimiser": "adam", "lr": 2e-4, "eps": 3.2e-7, "weight_decay": 3.2e-4, "max_epochs": 20, "patience": None,
    "select": "last", "sampling": "class-balanced",
    "source": "mahmoodlab/HIPT, 2-Weakly-Supervised-Subtyping: Adam with weight decay 1e-5 and eps 1e-8 on the loss / 32",
    "not_followed": "the loss is whole and decay and eps are 32 times as large, which gives the same steps",
}  # fmt: skip
# "restart" is what the loop does, run on recorded bags: a description of it reads as if counting ran on.
HIPT_SURVIVAL_LOOP: dict[str, Any] = {
    "optimiser": "adam", "lr": 2e-4, "weight_decay": 1e-5, "accumulate": 32, "left_over": "restart", "max_epochs": 20,
    "patience": None, "select": "last", "sampling": "class-balanced",
    "source": "mahmoodlab/Patch-GCN and mahmoodlab/HIPT, train_loop_survival",
    "not_followed": "time bins come from the training fold, there from the whole cohort",
}  # fmt: skip
ACMIL_LOOP: dict[str, Any] = {
    "optimiser": "adamw", "lr": 1e-4, "weight_decay": 1e-5, "schedule": "cosine-per-step", "max_epochs": 50, "patience": None,
    "ties": "first", "source": "dazhangyu123/ACMIL, Step3_WSI_classification_ACMIL.py, and dazhangyu123/AEM, its sibling",
    "not_followed": "selects on the sum of F1 and AUC, here on AUC; a bag that would end an epoch alone is not dropped",
}  # fmt: skip
MAMBAMIL_LOOP: dict[str, Any] = {
    "optimiser": "adam", "lr": 2e-4, "weight_decay": 1e-5, "max_epochs": 200, "min_epochs": 52, "patience": 20,
    "select": "best val loss", "ties": "first", "sampling": "class-balanced",
    "source": "isyangshu/MambaMIL, utils/core_utils.py with the options of its script for BRACS (--weighted_sample)",
    "not_followed": "",
}  # fmt: skip
MAMBAMIL_SURVIVAL_LOOP: dict[str, Any] = {
    "optimiser": "adam", "lr": 2e-4, "weight_decay": 1e-5, "accumulate": 32, "left_over": "restart", "max_epochs": 200,
    "min_epochs": 42, "patience": 20, "ties": "first", "source": "isyangshu/MambaMIL, utils/survival_core_utils.py",
    "not_followed": "its k-fold scheme selects on the tested fold, here on a validation part",
}  # fmt: skip

# Learning rate, weight decay and batch of one are the LongMIL paper's (section 4, appendix A.5.3). It names no optimiser,
# number of epochs or selection rule: AdamW is the natural reading of a weight decay of 1e-2, the rest is ours.
_PAPER: dict[str, Any] = {
    "name": "paper",
    "source": "LongMIL (NeurIPS 2024), section 4 and appendix A.5.3: learning rate, weight decay, batch of one",
    "not_followed": "optimiser, epochs and selection are ours: the paper names none",
}

# What the AB-MIL paper (Ilse et al. 2018) used on the classic sets, transcribed without the paper at hand: SGD, 100 epochs, the
# epoch of the lowest validation error, of equals the lowest loss. Learning rate and weight decay differ by set: see the suite.
_RECIPES: dict[tuple[str, str], dict[str, Any]] = {
    ("paper", "subtyping"): _PAPER,
    ("paper", "survival"): {**_PAPER, "max_epochs": 20, "patience": None, "select": "last"},
    ("hipt", "survival"): {"name": "hipt", **HIPT_SURVIVAL_LOOP},
    ("classic", "subtyping"): {
        "name": "classic", "optimiser": "sgd", "lr": 5e-4, "weight_decay": 5e-3, "max_epochs": 100, "patience": None,
        "select": "best val accuracy", "optimistic_epochs": 40,
        "source": "Ilse et al. 2018, Table 1 and its appendix; optimistic_epochs: binli123/dsmil-wsi, train_mil.py",
        "not_followed": "learning rate and weight decay are MUSK1's; other sets change them in their suite",
    },
}  # fmt: skip

_ABOUT = ("source", "not_followed", "params")  # what `official_recipe` holds beside values of the recipe
EPOCHS_WITHOUT_VALIDATION = 20
UNSELECTED = "official without selection"  # the name of a recipe that is official in all but this


def shared() -> list[tuple[str, str]]:
    """Name and task of every recipe that does not depend on the method."""
    return sorted(_RECIPES)


def names() -> list[str]:
    """Names of the recipes."""
    return sorted({"official", *(name for name, _ in _RECIPES)})


def get(
    name: str,
    task: str,
    *,
    has_validation: bool = True,
    official: Mapping[str, Mapping[str, Any]] | None = None,
    **changes: object,
) -> Recipe:
    """The recipe `name` for `task`, with `changes` to single values.

    "official" is the method's own; a method that published none for the task gets "paper", under that name. Without a validation
    part there is nothing to select on: a fixed number of epochs is run and the last one tested. An official recipe that selects
    is then no longer official and says so in its name.

    Args:
        name: "paper", "official", "classic" (subtyping on the classic MIL sets) or "hipt" (survival, the loop of HIPT's tables).
        task: "subtyping" or "survival".
        has_validation: whether the fold has a validation part.
        official: task -> values of the method's own recipe.

    Raises:
        MilbenchError: no recipe of that name, or none for the task.
        pydantic.ValidationError: a change that is not a field or has a bad value.
    """
    values = {key: value for key, value in _described(name, task, official).items() if key not in _ABOUT}
    if not has_validation and values.get("select") != "last":
        if values["name"] == "official":
            values["name"] = UNSELECTED
        values |= {
            "patience": None,
            "select": "last",
            "min_epochs": 0,
            "select_after": 0,
            "max_epochs": EPOCHS_WITHOUT_VALIDATION,
        }
    return Recipe.model_validate({**values, **changes})


def about(name: str, task: str, *, official: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, str]:
    """Where the recipe comes from ("source"), and what of that is not followed ("not_followed"), as texts.

    Arguments and errors are those of :func:`get`.
    """
    described = _described(name, task, official)
    return {key: described.get(key, "") for key in ("source", "not_followed")}


def _described(name: str, task: str, official: Mapping[str, Mapping[str, Any]] | None) -> dict[str, Any]:
    """The recipe's values and what is said of it."""
    if name not in names():
        raise unknown("recipe", name, names())
    if name == "official":
        own = (official or {}).get(task)
        return dict(_RECIPES["paper", task]) if own is None else {"name": "official", **own}
    if (name, task) not in _RECIPES:
        known = " and ".join(of for also, of in _RECIPES if also == name)
        raise MilbenchError(f"recipe {name} is for {known}, not for {task}; use paper")
    return dict(_RECIPES[name, task])
