"""Which datasets and encoders are known by name. What reads bags is imported where one is loaded: torch takes seconds."""

from dataclasses import dataclass, replace
from typing import Any, Literal

from milbench.config import Settings
from milbench.datasets import classic
from milbench.datasets.base import Dataset
from milbench.datasets.cohorts import COHORTS, ENCODERS
from milbench.datasets.files import manifest
from milbench.datasets.files.manifest import spelled
from milbench.datasets.spatial import dataset as spatial
from milbench.errors import MilbenchError, NotHere, unknown

__all__ = ["ENCODERS", "DatasetInfo", "infos", "known", "load"]


@dataclass(frozen=True)
class DatasetInfo:
    """A line of `milbench ls datasets`."""

    name: str
    label: str
    task: str
    encoders: tuple[str, ...]
    available: bool
    why_not: str = ""


def infos(settings: Settings | None = None) -> list[DatasetInfo]:
    """Every dataset known by name, whether or not its files are here.

    Args:
        settings: where datasets are; None is what the environment says.
    """
    home = (settings or Settings.from_environment()).data
    missing, no_digits = classic.missing(), spatial.missing()
    listed = [
        DatasetInfo(name, table.label, "subtyping", (classic.ENCODER,), missing is None, missing or "")
        for name, table in classic.TABLES.items()
    ] + [
        DatasetInfo(name, spatial.label(name), "subtyping", spatial.ENCODERS, no_digits is None, no_digits or "")
        for name in spatial.NAMES
    ]
    for name in sorted({*COHORTS, *manifest.names(home)}):
        saved = manifest.load(name, home)
        if saved is None:
            cohort = COHORTS[name]
            listed.append(
                DatasetInfo(name, cohort.label, cohort.task, (), False, f"add it with: {_command(name, None, None, None)}")
            )
            continue
        features = tuple(features.name for features in saved.features)
        why_not = "" if saved.labels and features else f"{'labels' if features else 'features'} are not added yet"
        listed.append(DatasetInfo(name, saved.label, saved.task, features, not why_not, why_not))
    return listed


def load(
    name: str,
    encoder: str,
    magnification: int | None = None,
    patch_size: int | None = None,
    dtype: Literal["float32", "float16"] = "float32",
    settings: Settings | None = None,
) -> Dataset:
    """The dataset `name` with features of `encoder`.

    Args:
        name, encoder, magnification, patch_size: which features; None takes the only magnification or patch size that there is.
        dtype: what features are stored as before they become float32.
        settings: where datasets are, and whether they are packed; None is what the environment says.

    Raises:
        NotHere: a known dataset, or these features of it, that the user has not added.
        MilbenchError: no such dataset or encoder, or its files are not installed, or a check of them finds errors; or several
            sets of features may be meant.
    """
    if name in {*classic.TABLES, *spatial.NAMES}:
        if magnification is not None or patch_size is not None:
            raise MilbenchError(f"dataset {name} has no magnification or patch size; leave them out of the suite")
        if name in classic.TABLES and encoder != classic.ENCODER:
            raise unknown(f"encoder of dataset {name}", encoder, [classic.ENCODER])
        dataset = classic.load(name) if name in classic.TABLES else spatial.load(name, encoder)
        if dtype == "float32":
            return dataset
        from milbench.datasets.packed import rounded

        return replace(dataset, read=lambda id: rounded(dataset.read(id)))
    settings = settings or Settings.from_environment()
    here = manifest.load(name, settings.data)
    if here is None:
        if name not in COHORTS:
            raise unknown("dataset", name, {*classic.TABLES, *spatial.NAMES, *COHORTS, *manifest.names(settings.data)})
        raise NotHere(f"dataset {name} is not here; add it with: {_command(name, encoder, magnification, patch_size)}")
    fit = here.matching(encoder, magnification, patch_size)
    if not fit:
        have = ", ".join(saved.name for saved in here.features) or "none"
        raise NotHere(
            f"dataset {name} has no features of {spelled(encoder, magnification, patch_size)} (it has {have}); "
            f"add them with: {_command(name, encoder, magnification, patch_size, more=True)}"
        )
    if len(fit) > 1:
        open_ = [key for key in ("magnification", "patch_size") if len({getattr(some, key) for some in fit}) > 1]
        values = [f"{key} = [{value}]" for key in open_ if (value := next(filter(None, (getattr(f, key) for f in fit)), None))]
        raise MilbenchError(
            f"dataset {name} has several sets of features of {spelled(encoder, magnification, patch_size)}: "
            f"{', '.join(some.name for some in fit)}; say which, in the [grid] of a suite for example by: {', '.join(values)}"
        )
    from milbench.datasets.files import dataset as from_files

    return from_files.dataset(here, fit[0], settings, dtype)


def _command(name: str, encoder: str | None, magnification: int | None, patch_size: int | None, *, more: bool = False) -> str:
    """What to type to add a dataset, or more features of one."""
    words = [f"milbench data add {name} --encoder {encoder or 'NAME'}"]
    words += [f"--magnification {magnification}"] if magnification else []
    words += [f"--patch-size {patch_size}"] if patch_size else []
    return " ".join([*words, "--features DIR", *([] if more else ["--labels CSV", "--splits DIR|FILE"])])


def known(name: str) -> dict[str, Any]:
    """What is known of a generated dataset before any model is trained: chance, bayes, oracle and examples.

    Raises:
        MilbenchError: the dataset is not generated.
    """
    if name not in spatial.NAMES:
        raise unknown("generated dataset", name, spatial.NAMES)
    return spatial.known(name)
