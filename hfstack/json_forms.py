"""Check that JSON has the form that its readers rely on, as type hints say it.

A record on the disk may have been edited, merged or damaged. What is read here either has the types
of its hints all the way down, or is refused with the name of the field that has not.
"""

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_TYPE_WORDS = {str: "a text", bool: "true or false", int: "a whole number", float: "a number"}
_MOST_BYTES = 256 << 20
_MOST_SHOWN = 40


def read_json(content: bytes) -> Any:
    """Return the value of a JSON document.

    Raises:
        ValueError: it is not JSON, holds a key twice, or nests too deeply; or it is too large.
    """
    if len(content) > _MOST_BYTES:
        raise ValueError(f"more than {_MOST_BYTES >> 20} MiB")
    try:
        return json.loads(content.decode("utf-8"), object_pairs_hook=unique_keys)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def without_nulls(value: Any) -> Any:
    """Return objects without keys of null, which Arrow adds for keys of other rows."""
    if isinstance(value, Mapping):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [without_nulls(item) for item in value]
    return value


def find_misfit(value: Any, hint: Any, name: str = "") -> str | None:
    """Return which field of a JSON value has not the form of its hint, and what it is.

    Args:
        hint: a type, a union, a Literal, `list[...]`, `dict[str, ...]`, a TypedDict, a dataclass
            whose fields have defaults, or Any.
        name: of the value.
    """
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return _find_odd_text(value, name)
    if typing.is_typeddict(hint):
        return _misfit_of_object(value, hint, name)
    if dataclasses.is_dataclass(hint):
        return _misfit_of_fields(value, hint, name)
    if origin in (typing.Union, types.UnionType):
        found = [find_misfit(value, each, name) for each in inside]
        # What is neither null nor of the right kind inside is said of the kind.
        return None if None in found else found[0]
    if origin is typing.Literal:
        wanted = " or ".join(map(repr, inside))
        return None if value in inside and isinstance(value, str) else _say(name, value, wanted)
    if origin is list:
        if not isinstance(value, list):
            return _say(name, value, "a list")
        found = (find_misfit(item, inside[0], f"{name}[{at}]") for at, item in enumerate(value))
        return next(filter(None, found), None)
    if origin is dict:
        if not isinstance(value, dict):
            return _say(name, value, "a mapping")
        found = (find_misfit(item, inside[1], _join(name, key)) for key, item in value.items())
        return next(filter(None, found), None) or _find_odd_text(list(value), name)
    if not _is_scalar(value, hint):
        return _say(name, value, "null" if hint is type(None) else _TYPE_WORDS[hint])
    return _find_odd_text(value, name)


def refuse_misfit(value: Any, hint: Any, path: Path, error: type[Exception]) -> None:
    """Raise an error that names file and field where JSON has not the form of a hint."""
    try:
        misfit = find_misfit(value, hint)
    except RecursionError:
        misfit = "it is nested too deeply"
    if misfit is not None:
        raise error(f"{path}: {misfit}; it was edited or damaged: restore the file")


def _misfit_of_object(value: Any, hint: Any, name: str) -> str | None:
    """Return the misfit of what should be an object with the fields of a TypedDict."""
    if not isinstance(value, dict):
        return _say(name, value, "a mapping")
    for field in sorted(hint.__required_keys__):
        if field not in value:
            return f"{_join(name, field)} is missing"

    hints = typing.get_type_hints(hint)
    for key, item in value.items():
        if misfit := find_misfit(item, hints.get(key, Any), _join(name, key)):
            return misfit
    return _find_odd_text(list(value), name)


def _misfit_of_fields(value: Any, hint: Any, name: str) -> str | None:
    """Return the misfit of what should be the fields of a dataclass, and no more."""
    if not isinstance(value, dict):
        return _say(name, value, "a mapping")
    hints = typing.get_type_hints(hint)
    for key, item in value.items():
        if key not in hints:
            return f"{_join(name, key)} is no field of it"
        if misfit := find_misfit(item, hints[key], _join(name, key)):
            return misfit
    return None


def _is_scalar(value: Any, hint: Any) -> bool:
    """Return whether a value is of a scalar type; an integer is a number as well."""
    if hint is float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and (isinstance(value, float) or abs(value) < 1 << 63)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63
    return isinstance(value, hint)


def _find_odd_text(value: Any, name: str) -> str | None:
    """Return where a value holds a text that no file can, or None."""
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list):
        return next(filter(None, (_find_odd_text(item, name) for item in value)), None)
    if isinstance(value, str) and ("\0" in value or not _is_utf8(value)):
        return f"{name or 'it'} holds {ascii(value)[:_MOST_SHOWN]}, which is no text"
    if isinstance(value, int) and abs(value) >= 1 << 63 and not isinstance(value, bool):
        return f"{name or 'it'} holds an integer of more than 64 bits"
    return None


def without_nul(value: Any) -> Any:
    """Replace the character NUL in texts, which readers here take for damage.

    A model with a vocabulary of bytes may generate it.
    """
    if isinstance(value, list):
        return [without_nul(item) for item in value]
    return value.replace("\0", "\N{REPLACEMENT CHARACTER}") if isinstance(value, str) else value


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _say(name: str, value: Any, wanted: str) -> str:
    shown = ascii(value) if isinstance(value, str) else json.dumps(value, default=str)
    if isinstance(value, float) and not math.isfinite(value):
        shown = str(value)
    if len(shown) > _MOST_SHOWN:
        shown = f"{shown[:_MOST_SHOWN]}..."
    return f"{name or 'it'} is {shown}, not {wanted}"


def _join(name: str, key: str) -> str:
    shown = ascii(key)[1:-1][:_MOST_SHOWN]
    return f"{name}.{shown}" if name else shown


class DoubledKeyError(ValueError):
    """A key stands twice in one object of JSON."""


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs of a JSON object, for `object_pairs_hook`.

    Raises:
        DoubledKeyError: a key occurs twice: which of its values counts, each reader says otherwise.
    """
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise DoubledKeyError(f"the key {twice[:_MOST_SHOWN]!r} occurs twice in one object")
    return found
