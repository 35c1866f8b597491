"""Names of aggregators with parameters, `longmil[radius=5,recipe.lr=1e-5]`: one spelling, so that names which mean the same
thing are equal wherever they are compared."""

import json
import re
from collections.abc import Mapping
from typing import Any


def literal(text: str) -> Any:
    """The value of a parameter as it is written: a number, true, false, none, or a word.

    >>> literal("8"), literal("0.5"), literal("true"), literal("none"), literal("rope")
    (8, 0.5, True, None, 'rope')
    """
    try:
        return json.loads(text.lower() if text.lower() in ("true", "false", "null") else text)
    except ValueError:
        return None if text.lower() == "none" else text


def spelled(name: str, changes: Mapping[str, Any], opening: str = "[", separator: str = ",", closing: str = "]") -> str:
    """`name[parameter=value,...]`, or the name alone where nothing is changed.

    >>> spelled("longmil", {"radius": 5, "heads": 4})
    'longmil[heads=4,radius=5]'
    """
    parts = [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in sorted(changes.items())]
    return name + (opening + separator.join(parts) + closing if parts else "")


def parsed(text: str) -> tuple[str, dict[str, Any]]:
    """`name[parameter=value,...]` as the name and its parameters, numbers as numbers; a part that has no value has None.

    >>> parsed("longmil[heads=4, radius=5.0]")
    ('longmil', {'heads': 4, 'radius': 5})
    """
    name, _, inside = text.strip().partition("[")
    parts = re.split(r",(?![^\[]*\])", inside.removesuffix("]"))  # a value may be a list
    items = [part.partition("=")[::2] for part in parts if part.strip()]
    return name.strip(), {key.strip(): _plain(literal(value.strip())) for key, value in items}


def canonical(text: str, usual: Mapping[str, Any] | None = None) -> str:
    """The one spelling of a name: parameters by name, numbers in their shortest form (5.0 is 5, 0.00001 is 1e-05).

    Args:
        text: `name` or `name[parameter=value,...]`, in any spelling.
        usual: default values of parameters, as `name` or `recipe.name`; parameters that equal them are left out.

    >>> canonical("abmil[gated=true,hidden=512.0]", {"gated": True})
    'abmil[hidden=512]'
    """
    name, changes = parsed(text)
    usual = {key: _plain(value) for key, value in (usual or {}).items()}
    return spelled(name, {key: value for key, value in changes.items() if key not in usual or usual[key] != value})


def _plain(value: Any) -> Any:
    """A value as JSON has it, whole floats as integers; a word that reads as none is none, as it would be in a name."""
    if isinstance(value, str):
        read = literal(value)
        return value if isinstance(read, str) else _plain(read)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
