"""Values read from files, checked against the annotations of the dataclass they are meant for."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


def check_field_types(config: Any) -> None:
    """Check a dataclass's values against its annotations; make whole floats integers.

    YAML and the command line read ``2e6`` as a float where an integer is wanted. A field whose
    metadata hold ``"auto"`` may also be ``"auto"``.

    Raises:
        ValueError: for the first value of the wrong type.
    """
    hints = get_type_hints(type(config))
    for entry in fields(config):
        value = getattr(config, entry.name)
        if _is_automatic(entry, value):
            continue
        setattr(config, entry.name, checked_value(entry.name, value, hints[entry.name]))


def check_values(
    values: Mapping[str, Any], config_class: type, *, need_all: bool = True, prefix: str = ""
) -> None:
    """Check values by name before a dataclass is made of them; names it lacks are left alone.

    Args:
        values: plain values, as a file holds them.
        config_class: the dataclass.
        need_all: also ask for every field that has no default.
        prefix: put before names in messages.

    Raises:
        ValueError: one that it needs is missing, or is of the wrong type.
    """
    hints = get_type_hints(config_class)
    for entry in fields(config_class):
        if entry.name in values and not _is_automatic(entry, values[entry.name]):
            checked_value(prefix + entry.name, values[entry.name], hints[entry.name])
        elif need_all and entry.name not in values and _is_required(entry):
            raise ValueError(f"{prefix}{entry.name} is missing")


def checked_value(name: str, value: Any, hint: Any) -> Any:
    """The value, as an integer or a float where that is what the annotation wants.

    Annotations of other than plain classes, literals and lists of them accept everything.

    Raises:
        ValueError: it is of the wrong type.
    """
    accepted = _plain_types(hint)
    if accepted is None:
        return value
    if int in accepted and float not in accepted and isinstance(value, float):
        if value.is_integer():
            value = int(value)
    elif float in accepted and isinstance(value, int) and not isinstance(value, bool):
        value = _as_float(name, value)
    elif tuple in accepted and isinstance(value, list):
        value = tuple(value)  # YAML and JSON have no tuples
    wrong_bool = isinstance(value, bool) and bool not in accepted
    literals = _literals(hint)
    is_literal = any(value == literal for literal in literals)
    if wrong_bool or not (isinstance(value, tuple(accepted)) or is_literal):
        names = [kind.__name__.replace("NoneType", "None") for kind in accepted]
        wanted = " or ".join([*names, *map(repr, literals)])
        raise ValueError(f"{name} is {value!r}, a {type(value).__name__}; want {wanted}")
    _check_items(name, value, hint)
    return value


def _as_float(name: str, value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name} is too large; want a number below 1.8e308") from None


def _check_items(name: str, value: Any, hint: Any) -> None:
    """The entries of a list or tuple of one kind: ``list[int]``, ``tuple[int | None, ...]``."""
    for member in _members(hint):
        if get_origin(member) not in (list, tuple) or not isinstance(value, (list, tuple)):
            continue
        kinds = [kind for kind in get_args(member) if kind is not Ellipsis]
        if len(kinds) == 1:
            kinds *= len(value)
        if len(kinds) != len(value):
            raise ValueError(f"{name} is {value!r}; want {len(kinds)} entries")
        for item, kind in zip(value, kinds, strict=True):
            checked_value(f"an entry of {name}", item, kind)


def _is_automatic(entry: Field[Any], value: Any) -> bool:
    return value == "auto" and "auto" in entry.metadata


def _is_required(entry: Field[Any]) -> bool:
    return entry.init and entry.default is MISSING and entry.default_factory is MISSING


def _members(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _plain_types(hint: Any) -> list[type] | None:
    """The classes an annotation accepts; None if it isn't made of plain classes."""
    accepted: list[type] = []
    for member in _members(hint):
        origin = get_origin(member) or member
        if origin is Literal:
            continue
        if origin is Any or not isinstance(origin, type):
            return None
        accepted.append(origin)
    return accepted


def _literals(hint: Any) -> list[Any]:
    literals = [member for member in _members(hint) if get_origin(member) is Literal]
    return [value for literal in literals for value in get_args(literal)]
