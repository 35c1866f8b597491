"""Classes of a dataset, and the labels of its table that mean them."""

import os
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from shlex import quote

from milbench.datasets.cohorts import BRACS_ORDER, BRACS_TYPES, COHORTS
from milbench.errors import MilbenchError, few, unknown
from milbench.files import read_toml

_TOKEN = re.compile(r'\s*(?:"((?:[^"]|"")*)"|([^,+=]*?))\s*([,+=]|$)')
QUOTES = 'a label with + , = or " in it stands in quotes'


def parsed(text: str) -> dict[str, list[str]]:
    """Class -> labels, of `A=x+y,B` or of a TOML file with lines such as `A = ["x", "y"]`. A class alone is its own label.

    Raises:
        MilbenchError: not of that form, with a line that is.
    """
    if os.path.isfile(text):
        return _of_file(Path(text))
    classes: dict[str, list[str]] = {}
    name, at = "", 0
    before = ","
    while at < len(text):
        token = _TOKEN.match(text, at)
        word = (token[2] if token[1] is None else token[1].replace('""', '"')) if token else ""
        if token is None or (not word and (before != "," or token[3])) or (token[3] == "+" and before == ","):
            raise MilbenchError(f"--classes {text!r} is not of the form A=x+y,B=z; {QUOTES}: --classes 'A=x+y,B=\"HER2+\"'")
        if before == ",":
            if word in classes:
                raise MilbenchError(f"--classes {text}: the class {word} stands there twice")
            name = word
            classes[name] = []
        elif word:
            classes[name].append(word)
        at, before = token.end(), token[3]
        if before == "=" and classes[name]:
            raise MilbenchError(f"--classes {text!r}: two = in one class; {QUOTES}: --classes 'A=x+y,B=\"HER2+\"'")
    return classes


def _of_file(path: Path) -> dict[str, list[str]]:
    try:
        classes = read_toml(path, "file of classes")
    except tomllib.TOMLDecodeError as error:
        raise MilbenchError(f"{path}: {error}") from error
    texts = {name: [labels] if isinstance(labels, str) else labels for name, labels in classes.items()}
    for name, labels in texts.items():
        if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
            raise MilbenchError(f'--classes {path}: {name} is no list of labels; write {name} = ["x", "y"]')
    return texts


def spelled(classes: Mapping[str, Sequence[str]]) -> str:
    """Classes as a shell and `--classes` take them."""
    items = []
    for name, labels in classes.items():
        items.append(_word(name) + ("=" + "+".join(map(_word, labels)) if list(labels) != [name] else ""))
    return f"--classes {quote(','.join(items))}"


def _word(word: str) -> str:
    return '"' + word.replace('"', '""') + '"' if re.search(r'[,+="]|^\s|\s$', word) else word


def asked(classes: Mapping[str, Sequence[str]], labels: set[str], file: Path) -> dict[str, list[str]]:
    """Class -> labels as `--classes` says; every label of the table belongs to one class.

    Raises:
        MilbenchError: a label that is in no class, in two, or not in the table.
    """
    by_class = {name: list(some) or [name] for name, some in classes.items()}
    listed = [label for some in by_class.values() for label in some]
    if twice := [label for label in listed if listed.count(label) > 1]:
        raise MilbenchError(f"--classes: {twice[0]} stands in two classes")
    example = f"{QUOTES}: {spelled({label: [label] for label in sorted(labels)[:8]})}"
    if strange := sorted(set(listed) - labels):
        raise MilbenchError(f"{unknown(f'label of {file}', strange[0], labels)}; {example}")
    if left := sorted(labels - set(listed)):
        raise MilbenchError(f"{file}: --classes has no class for {few(left)}; {example}")
    return by_class


def usual(labels: set[str], published: str | None) -> dict[str, list[str]]:
    """Class -> labels, in the order of class indices, for labels that the user says nothing about.

    The seven lesion types of BRACS become its three classes. A published cohort has its own classes, which a table may also
    number from 0. Elsewhere every label is a class: numbers by size, words by name.
    """
    types = [label for some in BRACS_TYPES.values() for label in some]
    if labels == set(types) or (published == "bracs" and labels <= set(types)):
        return {name: list(some) for name, some in BRACS_TYPES.items()}
    if published == "bracs" and labels == {str(number) for number in range(7)}:
        return {name: [str(BRACS_ORDER.index(label)) for label in some] for name, some in BRACS_TYPES.items()}
    names = COHORTS[published].classes if published else ()
    by_name = {label.lower(): label for label in labels}
    if names and set(by_name) == {name.lower() for name in names} and len(by_name) == len(labels):
        return {name: [by_name[name.lower()]] for name in names}
    if names and labels == {str(number) for number in range(len(names))}:
        return {name: [str(number)] for number, name in enumerate(names)}
    numbers = all(re.fullmatch(r"-?\d{1,18}", label) for label in labels)
    return {label: [label] for label in sorted(labels, key=lambda label: (int(label) if numbers else 0, label))}


def alike(classes: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """The same classes with one for all labels that differ in case or blanks only; empty where none do."""
    together: dict[str, dict[str, None]] = {}
    for name, labels in classes.items():
        together.setdefault("".join(name.split()).casefold(), {}).update(dict.fromkeys(labels))
    merged = {next(iter(labels)): list(labels) for labels in together.values()}
    return merged if len(merged) < len(classes) else {}


def several(classes: Mapping[str, Iterable[str]]) -> list[str]:
    """Classes of more than one label, spelled `LUAD, luad`."""
    return [", ".join(some) for some in map(list, classes.values()) if len(some) > 1]
