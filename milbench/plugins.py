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
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, partial
from importlib.machinery import SourceFileLoader
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType, NoneType
from typing import Any, TypeVar, get_args, get_type_hints

import torch
from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from milbench import places, process, sources
from milbench.aggregator import Aggregator
from milbench.errors import MilbenchError, from_validation, unknown
from milbench.files import sha256
from milbench.names import LONGEST, Family
from milbench.nn.weights import Trunk, read
from milbench.sources import Source
from milbench.spelling import literal, spelled

START = ("weights", "trained_on")  # parameters of every method that is trained by gradients: a file, and cohorts joined by +


@dataclass(frozen=True)
class Entry:
    """One registered name.

    Args:
        name, label, cite: for commands, tables and the bibliography.
        version: raised whenever the same parameters would give other numbers; a function of the parameters where only some do.
        cls: the aggregator.
        preset: the parameters this name stands for, where they differ from the class's defaults.
        complexity: time in the number of instances, as a formula.
        family, member: colour with line, and marker, of the method in figures; "" and None where it has none.
        where: file and line, for messages.
        source: the files of an outside plug-in; None for a built-in.
    """

    name: str
    label: str
    cite: str
    version: int | Callable[[Mapping[str, Any]], int]
    cls: type[Aggregator]
    preset: dict[str, Any]
    complexity: str
    family: str
    member: int | None
    where: str
    source: Source | None = None

    @property
    def implementation(self) -> str:
        """Which code the name without parameters is, see :meth:`implementation_of`."""
        return self.implementation_of(self.parameters().model_dump())

    def implementation_of(self, params: Mapping[str, Any]) -> str:
        """Which code this is: `name@version` of a built-in, the hash of its files as they were imported for any other.

        Args:
            params: all parameters, on which the version may depend.
        """
        if self.source is not None:
            return f"{self.name}@sha256:{self.source.digest}"
        return f"{self.name}@{self.version if isinstance(self.version, int) else self.version(params)}"

    @property
    def year(self) -> int | None:
        """Of the method's paper, as its bibliography key says it: 2018 of `ilse2018`."""
        found = re.search(r"(?:19|20)\d\d", self.cite)
        return int(found[0]) if found else None

    @cached_property
    def parameters(self) -> type[BaseModel]:
        """A model that checks the keyword-only parameters of the class, and those of a start from trained weights."""
        hints = get_type_hints(self.cls.__init__)
        fields: dict[str, Any] = {p.name: (hints.get(p.name, Any), self.preset.get(p.name, p.default)) for p in self.own.values()}
        if self.cls.fit is Aggregator.fit:
            fields = {**dict.fromkeys(START, (str | None, None)), **fields}
        return create_model(self.name, __config__=ConfigDict(extra="forbid"), **fields)

    @cached_property
    def own(self) -> dict[str, inspect.Parameter]:
        """The keyword-only parameters of the class, by name."""
        return {p.name: p for p in inspect.signature(self.cls.__init__).parameters.values() if p.kind is p.KEYWORD_ONLY}

    def build(self, in_dim: int, n_out: int, params: Mapping[str, Any]) -> Aggregator:
        """A fresh model; where `weights` are given and the class does not read them itself, its trunk starts from them.

        Raises:
            MilbenchError: weights that cannot be read or do not fit.
        """
        own = {name: value for name, value in params.items() if name in self.own}
        model = self.cls(in_dim, n_out, **own)
        if (path := params.get("weights")) and "weights" not in own:
            with torch.random.fork_rng(devices=[]):
                trunk = Trunk(model, self.cls(in_dim, n_out + 1, **own))
            state = read(path)
            trunk.load(state if trunk.names <= state.keys() else model.rename_official(state), path)
        return model


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

    @classmethod
    def of(cls, entry: Entry, given: Mapping[str, Any], said: str) -> "Variant":
        """The variant with these parameters and the defaults of the others.

        Args:
            given: some parameters, all of them known.
            said: how the variant was asked for, for messages.

        Raises:
            MilbenchError: a value of the wrong type, a file of weights that is not there, or cohorts without weights.
        """
        model = entry.parameters
        try:
            params, standard = (model.model_validate(values).model_dump() for values in (given, {}))
        except ValidationError as error:
            raise from_validation(error, said) from error
        changes = {name: value for name, value in params.items() if value != standard[name]}
        # Without weights to start from a trial is what it was before there could be any.
        params = {name: value for name, value in params.items() if name in entry.own or value is not None}
        weights, trained_on = (params.get(name) for name in START)
        if weights and "weights" not in entry.own and not Path(weights).is_file():
            raise MilbenchError(f"{said}: weights {weights}: no such file")
        if trained_on and not weights and "trained_on" not in entry.own:
            raise MilbenchError(f"{said}: trained_on says where weights come from; give weights=FILE as well")
        return cls(entry, params, changes)

    @property
    def name(self) -> str:
        """`transmil` or `transmil[landmarks=32]`, the same for every spelling of the same variant."""
        return spelled(self.entry.name, self.changes)

    @property
    def label(self) -> str:
        """The name for tables: `TransMIL (landmarks=32)`."""
        return spelled(self.entry.label, self.changes, " (", ", ", ")")

    @property
    def official(self) -> Mapping[str, Mapping[str, Any]]:
        """Task -> the recipe that this variant was published with, as :class:`milbench.Aggregator` describes it."""
        return self.entry.cls.official(self.params)

    @property
    def implementation(self) -> str:
        """The entry's, and the hash of the file that a parameter `weights` names."""
        weights = self.params.get("weights")
        code = self.entry.implementation_of(self.params)
        if not weights or not Path(weights).is_file():
            return code
        return f"{code}+sha256:{_weights_hash(Path(weights))[:16]}"

    def build(self, in_dim: int, n_out: int) -> Aggregator:
        """A fresh model."""
        return self.entry.build(in_dim, n_out, self.params)


def _weights_hash(path: Path) -> str:
    is_now = path.stat()
    return _hash_of(path, is_now.st_ino, is_now.st_size, is_now.st_mtime_ns, is_now.st_ctime_ns)


@lru_cache
def _hash_of(path: Path, *_state: int) -> str:
    """Weights are gigabytes and every trial needs their hash: they are read again only when size or times changed."""
    return sha256(path)


def unchanged(name: str, params: Mapping[str, Any], planned: str) -> None:
    """Make sure that the code and weights which a trial is about to run are those it was planned with.

    Args:
        name: the aggregator.
        params: all its parameters.
        planned: the variant's implementation, in the process that planned the trial.

    Raises:
        MilbenchError: they are not, or the files are no longer what this process imported.
    """
    variant = Variant(resolve(name).entry, dict(params), {})
    source = variant.entry.source
    if source and (path := source.changed()):
        raise MilbenchError(f"the code of {name} changed since it was planned ({path} was edited); run the suite again")
    if variant.implementation != planned:
        raise MilbenchError(
            f"the code of {name} changed since it was planned ({planned}, here is {variant.implementation}); run the suite again"
        )


T = TypeVar("T", bound=type[Aggregator])
_entries: dict[str, Entry] = {}
_loaded_files: set[Path] = set()


def register(
    name: str,
    *,
    label: str,
    cite: str = "",
    version: int | Callable[[Mapping[str, Any]], int] = 1,
    preset: dict[str, Any] | None = None,
    complexity: str | None = None,
    family: Family | None = None,
    member: int | None = None,
) -> Callable[[T], T]:
    """Class decorator: make an aggregator known as `name`. May be used several times on one class, with presets.

    Args:
        name: lower case letters, digits and hyphens.
        label: how tables print it.
        cite: bibliography key.
        version: raise it whenever the same parameters would give other numbers; where only some variants would, a function of
            all parameters that gives it, so that the trials of the others stay what they are.
        preset: parameters that this name stands for.
        complexity: of the preset, where it differs from the class's.
        family: the methods it is drawn with: they have one colour and line in figures. None is grey.
        member: its place in the family, from 0: the marker in figures. None takes a hash of the name.

    Raises:
        MilbenchError: the name is taken (both places are named) or malformed, or there is no such family.
    """

    if family is not None and family not in get_args(Family):
        raise unknown(f"family of aggregator {name}", family, get_args(Family))

    def add(cls: T) -> T:
        where = f"{inspect.getsourcefile(cls)}:{inspect.getsourcelines(cls)[1]}"
        if not re.fullmatch(r"[a-z][a-z0-9-]*", name) or len(name) > LONGEST:
            raise MilbenchError(
                f"{where}: {name!r} cannot be the name of an aggregator; use lower case letters, digits and hyphens"
            )
        if not issubclass(cls, Aggregator):
            raise MilbenchError(f"{where}: {cls.__name__} is not an Aggregator; write: class {cls.__name__}(Aggregator)")
        if name in _entries:
            raise MilbenchError(f"aggregator {name!r} is registered twice: {_entries[name].where} and {where}")
        source = None if cls.__module__.startswith("milbench_registry.") else sources.of_module(cls.__module__)
        _entries[name] = Entry(
            name, label, cite, version, cls, preset or {}, complexity or cls.complexity, family or "", member, where, source
        )
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
        _import(f"entry point {point.name} ({point.value})", point.load, partial(sources.of_module, point.module))
    for file in files:
        path = Path(file).resolve()
        if path not in _loaded_files:
            if not path.is_file():
                raise MilbenchError(f"--plugin {file}: no such file")
            known = set(_entries)
            _import(f"--plugin {file}", partial(_run_file, path), partial(sources.of_file, path), path)
            if known == set(_entries):
                raise MilbenchError(f'{file} registers no aggregator; write @register("name", label="Name") above the class')
            _loaded_files.add(path)


@contextmanager
def restored() -> Iterator[None]:
    """What is registered or loaded inside is forgotten afterwards, as between the tests of a suite."""
    entries, loaded = dict(_entries), set(_loaded_files)
    try:
        yield
    finally:
        _entries.clear()
        _entries.update(entries)
        _loaded_files.clear()
        _loaded_files.update(loaded)


def _import(what: str, load: Callable[[], Any], source: Callable[[list[ModuleType]], Source], path: Path | None = None) -> None:
    """Import a plug-in, from `path` if it is a file; `source` gives its files, given the modules that came with it."""
    before, modules, writes = dict(_entries), set(sys.modules), sys.dont_write_bytecode
    sys.dont_write_bytecode = True  # a cache compares seconds and sizes only, so it may survive an edit
    try:
        with process.kept():
            load()
        came = [module for name, module in list(sys.modules.items()) if name not in modules]
        for name, entry in _entries.items():
            if name not in before:
                _entries[name] = replace(entry, source=source(came).including(sys.modules[entry.cls.__module__]))
    except Exception as error:
        _entries.clear()
        _entries.update(before)  # a plug-in that failed registers nothing
        if isinstance(error, MilbenchError):
            raise
        where = places.of_error(error, {str(path)}) or what
        says = error.msg if isinstance(error, SyntaxError) else str(error)  # the rest of a syntax error is its place
        raise MilbenchError(f"{where}: {type(error).__name__}: {says}") from error
    finally:
        sys.dont_write_bytecode = writes


class _Fresh(SourceFileLoader):
    """Runs the file as it is now, without a cache."""

    def get_code(self, fullname: str) -> Any:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


def _run_file(path: Path) -> None:
    name = f"milbench_plugin_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path, loader=_Fresh(name, str(path)))
    assert spec is not None
    assert spec.loader is not None
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


def family_of(aggregator: str) -> tuple[str, int | None]:
    """Family and place in it of the method `name` or `name[...]`, for figures; ("", None) where no plug-in says them."""
    entry = _entries.get(aggregator.partition("[")[0])
    return (entry.family, entry.member) if entry else ("", None)


def place(aggregator: str) -> tuple[int, int, int, str]:
    """Where `name` or `name[...]` stands in a list by family and year: (family, year, place in the family, name).

    Methods without a family come last, those without a year first in their family.
    """
    families, entry = [*get_args(Family), ""], _entries.get(aggregator.partition("[")[0])
    if entry is None:
        return len(families), 0, 0, aggregator
    return families.index(entry.family), entry.year or 0, entry.member or 0, aggregator


def split_list(text: str) -> list[str]:
    """Split `mean,transmil[landmarks=32,heads=4]` at the commas outside brackets and, in labels, outside parentheses."""
    parts, depth = [""], 0
    for character in text:
        depth = max(0, depth + (character in "[(") - (character in "])"))
        if character == "," and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


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
        literal_value, kind = literal(value), model.model_fields[key].annotation
        if literal_value is None and kind is not Any and NoneType not in get_args(kind):
            literal_value = value  # a word that the parameter knows, such as positions=none
        given[key] = literal_value
    return Variant.of(entry, given, text)
