"""Reads config files: Python with a function `get_config()`, or JSON, which is never executed."""

import contextlib
import json
import os
import runpy
import sys
import traceback
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from prompt_tuning_jax.errors import UserError, nearest, nearest_file


def read_file(path: str) -> Mapping[str, Any]:
    """Returns the nested values in a config file; the line of a fault is named."""
    if os.path.isdir(path):
        raise UserError(f"config file {path!r} is a folder: give a .py file in it, or a .json")
    if not os.path.isfile(path):
        raise UserError(f"config file {path!r} does not exist{nearest_file(path)}")
    if path.endswith(".py"):
        return _execute(path)
    if path.endswith(".json"):
        with open(path, encoding="utf-8", errors="replace") as file:
            return parse_json(file.read(), f"config file {path!r}")
    raise UserError(f"config file {path!r} does not end in .py (Python) or .json (a saved config)")


def parse_json(text: str | bytes, source: str, kind: type = dict) -> Any:
    """Returns the object or the list in a JSON text; `source` begins an error."""
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{source}, line {error.lineno}: {error.msg}; it is not valid JSON"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{source} is nested too deeply, is not UTF-8, or has a number of too many digits"
        ) from error
    if not isinstance(values, kind):
        wanted = "object of keys and values" if kind is dict else "list"
        raise UserError(f"{source} holds no JSON {wanted}")
    return values


def _execute(path: str) -> Mapping[str, Any]:
    before = [*sys.path]
    sys.path.insert(0, os.path.dirname(os.path.abspath(path)))  # it may import its neighbours
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout may be for JSON
            names = runpy.run_path(path)
            values = names["get_config"]() if "get_config" in names else None
        values = values.to_dict() if isinstance(values, ConfigDict) else values
    except (Exception, SystemExit) as error:
        raise UserError(f"config file {path!r}{_line(error, path)}: {_fault(error)}") from error
    finally:
        sys.path[:] = before
    if isinstance(values, Mapping):
        return values
    raise UserError(
        f"config file {path!r} has no function get_config() that returns an"
        f" ml_collections.ConfigDict: it gives {type(values).__name__}"
    )


def _fault(error: BaseException) -> str:
    """Says in one line what a config file's code raised."""
    place = getattr(error, "obj", None)
    if isinstance(error, AttributeError) and isinstance(place, ConfigDict):
        hint = nearest(str(error.name), place)
        return f"{error.name!r} is missing{hint}: make a section first, as in c.task = ConfigDict()"
    text = error.msg if isinstance(error, SyntaxError) else " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"


def _line(error: BaseException, path: str) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == path]
    if isinstance(error, SyntaxError) and error.filename == path:
        lines.append(error.lineno)
    return f", line {lines[-1]}" if lines else ""
