"""The registry: one decorator makes an aggregator known, one function finds it again.

Plug-ins are looked for in this order: the built-in ones (`milbench_registry`), entry points in the group
`milbench.aggregators`, files given with `--plugin`.
"""

import hashlib
import importlib
import importlib.util
import inspect
import pkgutil
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from milbench import process
from milbench.aggregator import Aggregator
from milbench.errors import MilbenchError, from_validation, unknown
from milbench.spelling import literal, spelled


@dataclass(frozen=True)
class Entry:
    """One registered name.

    Args:
        name, label, cite: for commands, tables and the bibliography.
        version: raised whenever the same parameters would give other numbers.
        cls: the aggregator.
        preset: the parameters this name stands for, where they differ from the class's defaults.
        complexity: time in the number of instances, as a formula.
        where: file and line, for messages.
    """

    name: str
    label: str
    cite: str
    version: int
    cls: type[Aggregator]
    preset: dict[str, Any]
    complexity: str
    where: str

    @property
    def implementation(self) -> str:
        """Which code this is: `name@version` of a built-in, the hash of its file for any other."""
        if self.cls.__module__.startswith("milbench_registry"):
            return f"{self.name}@{self.version}"
        source = Path(inspect.getfile(self.cls)).read_bytes()
        return f"{self.name}@sha256:{hashlib.sha256(source).hexdigest()[:16]}"

    @property
    def parameters(self) -> type[BaseModel]:
        """A model that checks the keyword-only parameters of the class."""
        hints = get_type_hints(self.cls.__init__)
        fields: dict[str, Any] = {
            p.name: (hints.get(p.name, Any), self.preset.get(p.name, p.default))
            for p in inspect.signature(self.cls.__init__).parameters.values()
            if p.kind is p.KEYWORD_ONLY
        }
        return create_model(self.name, __config__=ConfigDict(extra="forbid"), **fields)


@dataclass(frozen=True)
class Variant:
    """A registered aggregator with all its parameters decided.

    Args:
        entry: the registration.
        params: every parameter, defaults filled in.
        changes: only those that differ from what the name stands for.
    """

    entry: Entry
    params: dict[str, Any] = field(hash=False)
    changes: dict[str, Any] = field(hash=False)

    @property
    def name(self) -> str:
        """`transmil` or `transmil[landmarks=32]`, the same for every spelling of the same variant."""
        return spelled(self.entry.name, self.changes)

    @property
    def label(self) -> str:
        """The name for tables: `TransMIL (landmarks=32)`."""
        return spelled(self.entry.label, self.changes, " (", ", ", ")")

    @property
    def implementation(self) -> str:
        """The entry's, and the hash of the file that a parameter `weights` names."""
        weights = self.params.get("weights")
        if not weights or not Path(weights).is_file():
            return self.entry.implementation
        with open(weights, "rb") as file:
            return f"{self.entry.implementation}+sha256:{hashlib.file_digest(file, 'sha256').hexdigest()[:16]}"

    def build(self, in_dim: int, n_out: int) -> Aggregator:
        """A fresh model."""
        return self.entry.cls(in_dim, n_out, **self.params)


T = TypeVar("T", bound=type[Aggregator])
_entries: dict[str, Entry] = {}
_loaded_files: set[Path] = set()


def register(
    name: str,
    *,
    label: str,
    cite: str = "",
    version: int = 1,
    preset: dict[str, Any] | None = None,
    complexity: str | None = None,
) -> Callable[[T], T]:
    """Class decorator: make an aggregator known as `name`. May be used several times on one class, with presets.

    Args:
        name: lower case letters, digits and hyphens.
        label: how tables print it.
        cite: bibliography key.
        version: raise it whenever the same parameters would give other numbers.
        preset: parameters that this name stands for.
        complexity: of the preset, where it differs from the class's.

    Raises:
        MilbenchError: the name is taken (both places are named) or malformed.
    """

    def add(cls: T) -> T:
        where = f"{inspect.getsourcefile(cls)}:{inspect.getsourcelines(cls)[1]}"
        if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
            raise MilbenchError(f"{where}: {name!r} is no name for an aggregator; use lower case letters, digits and hyphens")
        if name in _entries:
            raise MilbenchError(f"aggregator {name!r} is registered twice: {_entries[name].where} and {where}")
        _entries[name] = Entry(name, label, cite, version, cls, preset or {}, complexity or cls.complexity, where)
        return cls

    return add


def discover(files: Iterable[str | Path] = ()) -> None:
    """Import everything that registers aggregators; what is already loaded is left alone.

    Args:
        files: plug-in files, as given with `--plugin`.

    Raises:
        MilbenchError: a plug-in that cannot be read or imported, or takes a name that is taken.
    """
    package = importlib.import_module("milbench_registry")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"milbench_registry.{module.name}")
    for point in entry_points(group="milbench.aggregators"):
        _import(f"entry point {point.name} ({point.value})", point.load)
    for file in files:
        path = Path(file).resolve()
        if path not in _loaded_files:
            if not path.is_file():
                raise MilbenchError(f"--plugin {file}: no such file")
            _import(f"--plugin {file}", partial(_run_file, path))
            _loaded_files.add(path)


def _import(what: str, load: Callable[[], Any]) -> None:
    before = dict(_entries)
    try:
        with process.kept():
            load()
    except Exception as error:
        _entries.clear()
        _entries.update(before)  # half a plug-in is no plug-in
        if isinstance(error, MilbenchError):
            raise
        raise MilbenchError(f"{what}: {type(error).__name__}: {error}") from error


def _run_file(path: Path) -> None:
    name = f"milbench_plugin_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise MilbenchError(f"--plugin {path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # inspect and dataclasses look the module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


def files() -> list[Path]:
    """The plug-in files that were loaded, as another process must load them."""
    return sorted(_loaded_files)


def entries() -> list[Entry]:
    """Every registered aggregator, by name."""
    return [_entries[name] for name in sorted(_entries)]


def split_list(text: str) -> list[str]:
    """Split `mean,transmil[landmarks=32,heads=4]` at the commas outside brackets."""
    return [part.strip() for part in re.split(r",(?![^\[]*\])", text) if part.strip()]


def resolve(text: str) -> Variant:
    """`name` or `name[parameter=value,...]` as a checked variant.

    Raises:
        MilbenchError: unknown name or parameter (with near misses), or a value of the wrong type.
    """
    match = re.fullmatch(r"([^\[\]]+)(?:\[(.*)\])?", text.strip())
    if not match:
        raise MilbenchError(f"cannot read aggregator {text!r}; write name or name[parameter=value,...]")
    name, inside = match[1].strip(), match[2]
    if name not in _entries:
        raise unknown("aggregator", name, _entries)
    entry = _entries[name]
    model = entry.parameters
    given: dict[str, Any] = {}
    for item in (inside or "").split(","):
        if not item.strip():
            continue
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals or not value:
            raise MilbenchError(f"cannot read {item.strip()!r} in {text!r}; write parameter=value")
        if key not in model.model_fields:
            raise unknown(f"parameter of {name}", key, model.model_fields)
        found, kind = literal(value), model.model_fields[key].annotation
        if found is None and kind is not Any and NoneType not in get_args(kind):
            found = value  # a word of the parameter's own, such as positions=none
        given[key] = found
    try:
        params = model.model_validate(given).model_dump()
        standard = model.model_validate({}).model_dump()
    except ValidationError as error:
        raise from_validation(error, text) from error
    return Variant(entry, params, {key: value for key, value in params.items() if value != standard[key]})
