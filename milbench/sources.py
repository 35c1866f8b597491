"""The files of an outside plug-in as they were when it was imported: its identity, and whether it still is the same.

Code that runs is what was imported, so bytes are hashed right after the import and compared with the files later.
"""

import ast
import hashlib
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from milbench.errors import MilbenchError
from milbench.files import sha256

_INSTALLED = ("site-packages", "dist-packages")
_STANDARD = Path(sysconfig.get_path("stdlib")).resolve()
_OURS = ("milbench", "milbench_registry")


@dataclass(frozen=True)
class Source:
    """Files of a plug-in.

    Args:
        main: the file whose name does not count, or the folder of a package.
        files: file -> SHA-256 of its bytes when it was imported.
    """

    main: Path
    files: Mapping[Path, str]

    @property
    def digest(self) -> str:
        """16 hex digits, wherever the files are: of one file the hash of its bytes, else of all with their places beside it."""
        if list(self.files) == [self.main]:
            return self.files[self.main][:16]
        parts = sorted((self._place(path), said) for path, said in self.files.items())
        return hashlib.sha256("".join(f"{name}\0{said}\n" for name, said in parts).encode()).hexdigest()[:16]

    def including(self, module: ModuleType) -> "Source":
        """With the file of a module from another place, unless it is part of milbench."""
        path = _file(module)
        if path is None or path in self.files or module.__name__.partition(".")[0] in _OURS:
            return self
        return Source(self.main, {**self.files, path: sha256(path)})

    def _place(self, path: Path) -> str:
        if path == self.main:
            return ""
        home = self.main.parent if self.main in self.files else self.main
        return path.relative_to(home).as_posix() if path.is_relative_to(home) else f"../{path.name}"

    def changed(self) -> Path | None:
        """The first file that is no longer what was imported."""
        return next((path for path, said in self.files.items() if not path.is_file() or sha256(path) != said), None)


def of_file(main: Path, also: Iterable[ModuleType] = ()) -> Source:
    """A plug-in file with the helper modules that it imports from its own folder, and those that they import.

    Args:
        main: the file.
        also: modules that came with it, however they were imported; those of its folder count.
    """
    main = main.resolve()
    files: dict[Path, str] = {}
    left = [main]
    left += [path for module in also if (path := _file(module)) and _beside(path, main.parent)]
    while left:
        path = left.pop()
        if path not in files:
            data = path.read_bytes()
            files[path] = hashlib.sha256(data).hexdigest()
            left += [imported for name, level in _imports(data, path) for imported in _found(name, level, path, main.parent)]
    return Source(main, files)


def of_package(module: ModuleType) -> Source:
    """Every Python file of a package."""
    (home, *_) = (Path(folder).resolve() for folder in module.__path__)
    paths = sorted(path for path in home.rglob("*.py") if path.is_file())
    return Source(home, {path: sha256(path) for path in paths})


def of_module(name: str, also: Iterable[ModuleType] = ()) -> Source:
    """The package that a module is in, or its file with the helpers beside it.

    Raises:
        MilbenchError: the module has no file, as one typed in at a prompt.
    """
    top = sys.modules.get(name.partition(".")[0])
    if top is not None and getattr(top, "__path__", None):
        return of_package(top)
    path = _file(sys.modules[name]) if name in sys.modules else None
    if path is None:
        raise MilbenchError(f"module {name} has no file; an aggregator needs one, which workers can import: write it to FILE.py")
    return of_file(path, also)


def _file(module: ModuleType) -> Path | None:
    name = getattr(module, "__file__", None)
    path = Path(name).resolve() if isinstance(name, str) else None
    return path if path and path.suffix == ".py" and path.is_file() else None


def _beside(path: Path, home: Path) -> bool:
    """Whether the file is the plug-in's own: below its folder, and neither installed there nor milbench itself."""
    if not path.is_relative_to(home) or any(part in _INSTALLED for part in (home.name, *path.relative_to(home).parts)):
        return False
    others = [_STANDARD, *(Path(sys.modules[name].__path__[0]).resolve() for name in _OURS if name in sys.modules)]
    return not any(path.is_relative_to(folder) and not home.is_relative_to(folder) for folder in others)


def _imports(data: bytes, path: Path) -> Iterator[tuple[str, int]]:
    """(module, level) of everything that the file imports, also inside functions: a level above 0 is relative."""
    try:
        tree = ast.parse(data, path)
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "", node.level
            yield from ((f"{node.module}.{a.name}" if node.module else a.name, node.level) for a in node.names if a.name != "*")


def _found(name: str, level: int, path: Path, home: Path) -> Iterator[Path]:
    """The plug-in's own files that an import of `name` runs: a module and the packages above it."""
    parts = name.split(".") if name else []
    for end in range(1, len(parts) + 1):
        loaded = None if level else sys.modules.get(".".join(parts[:end]))
        if loaded is not None:
            candidates = [_file(loaded)]
        else:
            bases = list(path.parents[level - 1 : level]) if level else [path.parent, home]
            places = [base.joinpath(*parts[:end]) for base in bases]
            candidates = [c for place in places for c in (place.with_name(f"{place.name}.py"), place / "__init__.py")]
        yield from (c.resolve() for c in candidates if c and c.is_file() and _beside(c.resolve(), home))
