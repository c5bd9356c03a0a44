"""Checks of arguments; each error text states the argument's name, its value or type, and what to give instead."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Collection, Sequence
from numbers import Integral, Real
from typing import Any


def type_name(value: object) -> str:
    """Name of the value's type with its article, such as "a str" and "an int"."""
    name = type(value).__name__
    return f"{'an' if name.lower().startswith(('a', 'e', 'i', 'o', 'nd')) else 'a'} {name}"


def json_type_name(value: object) -> str:
    """Type of a value that was read from JSON, with its article, in the words of JSON."""
    names = {dict: "an object", list: "an array", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def check_type(name: str, value: object, types: type | tuple[type, ...], give: str) -> None:
    """Raise TypeError ``<name> is a(n) <type>; give <give>`` unless the value is an instance of the types."""
    if not isinstance(value, types):
        raise TypeError(f"{name} is {type_name(value)}; give {give}")


def check_sequence(name: str, value: object, give: str) -> Sequence[Any]:
    """Return the value if it is a sequence other than a string; raise TypeError as :func:`check_type` otherwise."""
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise TypeError(f"{name} is {type_name(value)}; give {give}")
    return value


def check_function(name: str, value: object, parameters: Sequence[str]) -> None:
    """Raise TypeError unless the value can be called with these arguments by position.

    Args:
        name: the argument's name.
        value: its value.
        parameters: names of the arguments of a call, for the error text.
    """
    call = f"{name}({', '.join(parameters)})"
    if not callable(value):
        raise TypeError(f"{name} is {type_name(value)}; give a function, {call}")
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):  # of some functions that are not written in Python
        return
    try:
        signature.bind(*parameters)
    except TypeError as error:
        raise TypeError(f"{name} is called as {call}, but it is {name}{signature} ({error}); change it") from None


def check_choice(name: str, value: object, choices: Collection[str]) -> None:
    """Raise ValueError ``<name> is <value>; give <choices>`` unless the value is one of the choices."""
    if value not in choices:
        *others, last = map(repr, choices)
        raise ValueError(f"{name} is {value!r}; give {', '.join(others)} or {last}")


def check_integer(name: str, value: object, *, least: int, hint: str = "") -> None:
    """Raise TypeError unless the value is an integer, and ValueError unless it is at least ``least``.

    Args:
        name: the argument's name.
        value: its value.
        least: smallest value accepted.
        hint: ends the error text, such as an example.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        remedy = f"an integer{hint}" if (number := _meant_integer(value)) is None else f"the integer {number}"
        raise TypeError(f"{name} is {value!r}, {type_name(value)}; give {remedy}")
    if value < least:
        raise ValueError(f"{name} is {value}; give at least {least}{hint}")


def _meant_integer(value: object) -> int | None:
    """The integer that a string or float stands for, as from YAML; None if there is none."""
    if isinstance(value, str) and value.strip().isdecimal():
        return int(value)
    return int(value) if isinstance(value, float) and value.is_integer() else None


def check_number(name: str, value: object, give: str = "a number") -> None:
    """Raise TypeError as :func:`check_type` unless the value is a real number; True and False are none."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} is {type_name(value)}; give {give}")


def check_count(name: str, count: int, images: int) -> None:
    """Raise ValueError unless there is one sample for each generated image."""
    if count != images:
        raise ValueError(f"{name} holds {count} samples but generated_images holds {images}; give one for each")


def check_positive(name: str, value: object) -> None:
    """:func:`check_integer` with 1 as the smallest value accepted."""
    check_integer(name, value, least=1)


def closest(name: str, known: Collection[str]) -> str | None:
    """Name that ``name`` is probably a misspelling of."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.8)
    return found[0] if found else None


def check_keywords(given: Collection[str], function: str, known: Collection[str]) -> None:
    """Raise TypeError if there are any keywords, which ``function`` does not have; name the nearest it has."""
    for name in given:
        meant = closest(name, known)
        remedy = f"did you mean {meant}?" if meant else f"its arguments are {', '.join(known)}"
        raise TypeError(f"{name} is not an argument of {function}; {remedy}")
