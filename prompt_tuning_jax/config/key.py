"""A key of a config: its default, the values it can have, and how a value is read. A module that
reads a section of a config declares the section's keys in `KEYS`, each by its name there."""

import ast
import math
import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from prompt_tuning_jax.errors import nearest, short


class Key(NamedTuple):
    """A key. The type of its default is the type of its values."""

    # The value where a config gives none. If it is not valid, a config has to give one.
    default: Any
    expected: str  # what a value has to be, in words
    holds: Callable[[Any], bool] = lambda value: True  # whether a value of the right type is valid
    # The valid values where these are names, so that a fault can say which one is nearest.
    names: Collection[str] = ()
    # What a valid value has to be beside the other values of its section, in words.
    beside: str = ""
    # Whether it is so, given the value and the values of its section by name.
    fits: Callable[[Any, Mapping[str, Any]], bool] = lambda value, section: True

    def if_fits(self, beside: str, fits: Callable[[Any, Mapping[str, Any]], bool]) -> "Key":
        """Returns the key with a condition on the other values of its section."""
        return self._replace(beside=beside, fits=fits)


def whole(default: int, least: int = 0) -> Key:
    """Returns a key for whole numbers."""
    return Key(default, f"a whole number of at least {least}", lambda value: value >= least)


def number(default: float, below: float = math.inf) -> Key:
    """Returns a key for finite numbers from 0 on."""
    limit = "" if below == math.inf else f" and below {below:g}"
    return Key(default, f"a number of at least 0{limit}", lambda value: 0 <= value < below)


def among(default: str, names: Collection[str]) -> Key:
    """Returns a key for names. `names` is not copied: one may be added later."""
    expected = f"one of {', '.join(map(repr, names))}"
    return Key(default, expected, lambda value: value in names, names)


def switch(default: bool) -> Key:
    """Returns a key for true and false."""
    return Key(default, "true or false")


def string(default: str, least: int = 0) -> Key:
    """Returns a key for texts of at least so many characters, 0 or 1."""
    expected = "a text that is not empty" if least else "a text"
    return Key(default, expected, lambda value: len(value) >= least)


def strings() -> Key:
    """Returns a key for tuples of texts that are not empty."""
    return Key((), "texts, none of them empty, as ('first', 'second')", all_texts)


def all_texts(value: tuple) -> bool:
    """Tells whether all items of a tuple are texts that are not empty."""
    return all(type(item) is str and item for item in value)


def plain_scalar(value: Any) -> Any:
    """Returns a scalar of numpy as Python's, and anything else as it is. Does not import numpy."""
    return value.item() if getattr(value, "shape", None) == () else value


def convert(value: Any, key: Key) -> Any:
    """Returns a value as the key's type if nothing is lost: a list as a tuple, 1 as 1.0."""
    kind, value = type(key.default), plain_scalar(value)
    if kind is tuple and isinstance(value, list | tuple):
        return tuple(map(plain_scalar, value))
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is float and is_number and abs(value) <= sys.float_info.max:
        return float(value)
    return value


def parse(written: str, key: Key) -> Any:
    """Reads a value that was typed. What is not of the key's type stays a text, a fault later. In a
    text `\\n` and `\\t` are a new line and a tab, as in a template."""
    kind, text = type(key.default), written.replace("\\n", "\n").replace("\\t", "\t")
    if kind is str:
        return text
    if kind is bool:
        return {"true": True, "1": True, "false": False, "0": False}.get(written.lower(), written)
    try:
        value = ast.literal_eval(written)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        if "," in written or " " in written:
            return written
        value = text
    return (value,) if kind is tuple and not isinstance(value, tuple | list) else value


def faults(keys: Mapping[str, Key], values: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Returns what is wrong with each value by its name or, if nothing is, with several together.
    There is a value for each key; `prefix` begins each name in a fault."""

    def fault(name: str, expected: str) -> str:
        return f"config.{prefix}{name} is {short(values[name], 200)}: expected {expected}"

    alone = [
        fault(name, key.expected + _hint(key, values[name]))
        for name, key in keys.items()
        if type(values[name]) is not type(key.default) or not key.holds(values[name])
    ]
    return alone or [
        fault(name, key.beside)
        for name, key in keys.items()
        if not key.fits(values[name], _section(name, values))
    ]


def _hint(key: Key, value: Any) -> str:
    if key.names:
        given = value if isinstance(value, tuple) else (value,)
        wrong = [item for item in given if isinstance(item, str) and item not in key.names]
        return nearest(wrong[0], key.names) if wrong else ""
    return f", for example {key.default!r}" if key.holds(key.default) else ""


def _section(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values of the section that a name is in, by their names inside."""
    section = name[: name.find(".") + 1]
    return {n.removeprefix(section): v for n, v in values.items() if n.startswith(section)}
