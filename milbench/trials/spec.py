"""What a trial is: everything that decides its numbers, and a hash of that."""

import hashlib
import json
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from milbench.recipes import Recipe

SCHEMA = 2  # of a result; raised when old results can no longer be read as new ones


def id_of(spec: Mapping[str, Any]) -> str:
    """First 16 hex digits of the SHA-256 of a spec's canonical JSON: sorted keys, no spaces. Equal specs, equal text.

    Args:
        spec: as :class:`TrialSpec` dumps it, or as trial.json has it, of whatever schema.

    Raises:
        ValueError: a number in it is not finite.
    """
    return _named(_canonical(spec))


def ids_of(spec: Mapping[str, Any]) -> Callable[[int, int], str]:
    """A function that gives :func:`id_of` the same spec with another fold and seed, without writing all of it out each time."""
    mark = uuid.uuid4().hex
    before, between, after = _canonical({**spec, "fold": mark, "seed": mark}).split(f'"{mark}"')  # in the order of the keys
    return lambda fold, seed: _named(f"{before}{fold}{between}{seed}{after}")


def _canonical(spec: Mapping[str, Any]) -> str:
    return json.dumps(spec, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _named(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class TrialSpec(BaseModel):
    """The identity of a trial. Two equal specs give byte-identical predictions on the same machine and versions.

    Args:
        dataset, fingerprint: name and hash of features and labels.
        unit: what is predicted, a slide or a case.
        task: "subtyping" or "survival".
        encoder, magnification, patch_size, feature_dtype: where the features come from; None where it does not apply.
        standardise: features scaled with training-fold statistics.
        aggregator, params, implementation: which code with which parameters, defaults included.
        split, split_fingerprint, fold: who is trained on and who is tested.
        seed: of weights, dropout and the order of bags.
        recipe: how it is fitted, with its values.
        threads, device, backends: what the arithmetic's rounding depends on; backends names, for every operation that the
            aggregator may use, the implementation that this machine chooses.
        result_schema: version of the result format.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str
    fingerprint: str
    unit: Literal["slide", "case"]
    task: Literal["subtyping", "survival"]
    encoder: str
    magnification: int | None = None
    patch_size: int | None = None
    feature_dtype: Literal["float32", "float16"] = "float32"
    standardise: bool = False
    aggregator: str
    params: dict[str, Any]
    implementation: str
    split: str
    split_fingerprint: str
    fold: int = Field(ge=0)
    seed: int = Field(ge=0)
    recipe: Recipe
    threads: int = Field(1, ge=1)
    device: Literal["cpu", "cuda", "mps"] = "cpu"
    backends: dict[str, str] = {}
    result_schema: int = SCHEMA

    @property
    def trial_id(self) -> str:
        """The trial's name, as :func:`id_of` gives it."""
        return id_of(self.model_dump())

    @property
    def axes(self) -> tuple[object, ...]:
        """The named axes that random draws derive from: the same for every aggregator, so comparisons are paired."""
        return (self.dataset, self.split, self.fold, self.seed)

    def context(self, recipe: Mapping[str, Any]) -> str:
        """Hash of all that two methods must share to stand in one column: everything but method and its backends, fold, seed.

        Args:
            recipe: the recipe as it was asked for; under "official" each method has values of its own.
        """
        shared = self.model_dump(exclude={"aggregator", "params", "implementation", "backends", "fold", "seed", "recipe"})
        return hashlib.sha256(json.dumps([shared, recipe], sort_keys=True).encode()).hexdigest()[:12]
