"""Configs: read from a file, changed by overrides, checked against the table of `keys.py`.

A config file is Python with a function `get_config()`, executed like any script, or the JSON that
a run saved, which is never executed. It states what differs from the defaults in `KEYS`. Nothing
here imports jax, so a fault is reported in a fraction of a second.
"""

import json
import os
import runpy
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from prompt_tuning_jax.config.schema import KEYS, OPTIMIZERS
from prompt_tuning_jax.data import settings
from prompt_tuning_jax.errors import UserError, nearest, short
from prompt_tuning_jax.methods import METHODS

# What the code of a config file may raise: it is the file's fault, not a failed run.
_FILE_FAULTS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    OSError,
    RuntimeError,
    SyntaxError,
    SystemExit,
    TypeError,
    ValueError,
)


def load(path: str | os.PathLike | None, overrides: Sequence[str] = ()) -> ConfigDict:
    """Reads a config, applies the overrides and checks the whole.

    Args:
        path: a .py file with `get_config()`, a saved .json, or None for the defaults.
        overrides: words `--config.KEY=VALUE`, the last of a key counts.

    Returns:
        A locked ConfigDict that holds every key of `KEYS`.

    Raises:
        UserError: the file is missing or broken; or all faults of keys and values at once.
    """
    path = None if path is None else os.fspath(path)
    return build({} if path is None else _read(path), overrides, path)


def of_artifact(manifest: Mapping[str, Any], overrides: Sequence[str] = ()) -> ConfigDict:
    """The config in an artifact's manifest; without its method where that is one which is not here,
    as of a notebook: whoever uses an artifact need not have it."""
    given = dict(manifest["config"])
    if flatten(given).get("method.name") == manifest["method"] not in METHODS:
        given.pop("method")
    return build(given, overrides)


def build(
    given: Mapping[str, Any], overrides: Sequence[str] = (), path: str | None = None
) -> ConfigDict:
    """As `load`, from nested values instead of a file; `path` is what an error names."""
    values = {name: key.default for name, key in KEYS.items()}
    faults = []
    for name, value in flatten(given).items():
        if name in KEYS:
            values[name] = _plain(value, name)
        else:
            faults.append(_unknown(name))
    for override in overrides:
        try:
            name, value = _override(override)
            values[name] = value
        except UserError as error:
            faults.append(str(error))
    _refuse(faults + _wrong_values(values), path)
    return _nested(values).lock()


def validate(config: ConfigDict) -> None:
    """Raises a UserError that names every fault of `config`: keys, types, values and their fit."""
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"the config is a {type(config).__name__}: make one with config.load(FILE), or with"
            " config.build({...}) of what is not to be as usual"
        )
    values = flatten(config.to_dict())
    faults = [_unknown(name) for name in values if name not in KEYS]
    faults += [
        f"config.{name} is missing: expected {key.expected}"
        for name, key in KEYS.items()
        if name not in values
    ]
    known = {name: values.get(name, key.default) for name, key in KEYS.items()}
    _refuse(faults + _wrong_values(known), None)


def to_json(config: ConfigDict) -> str:
    """Returns the config as text that `load` reads from a .json and `difference` compares."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"


def difference(old: str, config: ConfigDict) -> list[str]:
    """Returns a line for each key whose value in the saved JSON `old` is another than in `config`.

    A key that `old` lacks had the value that is the default now.
    """
    before = {name: key.default for name, key in KEYS.items()}
    before |= {name: _plain(value, name) for name, value in flatten(_parse(old, "saved")).items()}
    now = flatten(config.to_dict())
    return [
        f"config.{short(name, 200)[1:-1]} was {short(before.get(name), 1000)} and is"
        f" {short(now.get(name), 1000)} now"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the leaves of nested mappings by their dotted path; a key's value is a leaf."""
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping) and path not in KEYS:
            leaves |= flatten(value, f"{path}.")
        else:
            leaves[path] = value
    return leaves


def _nested(values: Mapping[str, Any]) -> ConfigDict:
    tree: dict[str, Any] = {}
    for name, value in values.items():
        *sections, last = name.split(".")
        place = tree
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    return ConfigDict(tree)


def _read(path: str) -> Mapping[str, Any]:
    if os.path.isdir(path):
        raise UserError(f"config file {path!r} is a folder: give a .py file in it, or a .json")
    if not os.path.isfile(path):
        folder = os.path.dirname(path)
        beside = os.listdir(folder or ".") if os.path.isdir(folder or ".") else []
        hint = nearest(path, (os.path.join(folder, name) for name in beside))
        raise UserError(f"config file {path!r} does not exist{hint}")
    if path.endswith(".py"):
        return _execute(path)
    if path.endswith(".json"):
        with open(path, encoding="utf-8", errors="replace") as file:
            return _parse(file.read(), path)
    raise UserError(
        f"config file {path!r} has to end in .py (a Python file) or .json (a saved one)"
    )


def _execute(path: str) -> Mapping[str, Any]:
    try:
        names = runpy.run_path(path)
        if not callable(names.get("get_config")):
            raise UserError(f"config file {path!r} has no function get_config(): define one")
        given = names["get_config"]()
    except _FILE_FAULTS as error:
        raise UserError(f"config file {path!r}{_line(error, path)}: {_fault(error)}") from error
    if isinstance(given, ConfigDict):
        return given.to_dict()
    if isinstance(given, Mapping):
        return given
    raise UserError(
        f"config file {path!r}: get_config() returned {type(given).__name__},"
        " expected a ml_collections.ConfigDict"
    )


def _fault(error: BaseException) -> str:
    """What a config file's code raised, in one line."""
    place = getattr(error, "obj", None)
    if isinstance(error, AttributeError) and isinstance(place, ConfigDict):
        sections = {key.partition(".")[0] for key in KEYS if "." in key}
        hint = nearest(str(error.name), {*place, *sections, *KEYS} - {error.name})
        return (
            f"{error.name!r} is not there{hint}: a section is made before its keys are set, as"
            " config.optimizer = ConfigDict()"
        )
    text = error.msg if isinstance(error, SyntaxError) else " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"


def _line(error: BaseException, path: str) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == path]
    if isinstance(error, SyntaxError) and error.filename == path:
        lines.append(error.lineno)
    return f", line {lines[-1]}" if lines else ""


def _parse(text: str, source: str) -> Mapping[str, Any]:
    try:
        given = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"config file {source!r}, line {error.lineno}: {error.msg}; it is not valid JSON"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"config file {source!r} is nested too deeply, or has a number of too many digits"
        ) from error
    if not isinstance(given, dict):
        raise UserError(f"config file {source!r} holds no JSON object of keys and values")
    return given


def _override(word: str) -> tuple[str, Any]:
    """Parses `--config.KEY=VALUE` by the type of the key's default."""
    name, equals, text = word.removeprefix("--config.").partition("=")
    if not word.startswith("--config.") or not equals:
        raise UserError(f"{word!r} is not an override: write --config.KEY=VALUE as one word")
    if name not in KEYS:
        raise UserError(_unknown(name))
    key = KEYS[name]
    # Private flag values and arguments: absl's own would want the whole program to be absl's.
    parsed = flags.FlagValues()
    arguments = ["prompt-tuning", word]
    defaults = _nested({name: key.default})
    holder = config_flags.DEFINE_config_dict(
        "config", defaults, flag_values=parsed, sys_argv=arguments
    )
    try:
        parsed(arguments)
    except flags.Error as error:
        raise UserError(_wrong(name, text)) from error
    return name, flatten(holder.value.to_dict())[name]


def _plain(value: Any, name: str) -> Any:
    """Undoes what JSON and a researcher's hand change: tuples as lists, 1 for 1.0."""
    kind = type(KEYS[name].default) if name in KEYS else tuple
    if kind is tuple and isinstance(value, list):
        return tuple(value)
    # What is too large for a float stays what it is, and is refused as that.
    if kind is float and type(value) is int and abs(value) < sys.float_info.max:
        return float(value)
    return value


def _unknown(name: str) -> str:
    inside = [key.removeprefix(f"{name}.") for key in KEYS if key.startswith(f"{name}.")]
    if inside:
        return f"config.{name} is a section: set one of its keys {', '.join(inside)}"
    return f"config.{name} is not a known key{nearest(name, KEYS)}"


def _wrong(name: str, value: Any) -> str:
    key = KEYS[name]
    if key.names:
        hint = nearest(value, key.names) if isinstance(value, str) else ""
    else:
        hint = f", for example {key.default!r}"
    return f"config.{name} is {short(value, 200)}: expected {key.expected}{hint}"


def _wrong_values(values: Mapping[str, Any]) -> list[str]:
    wrong = [
        _wrong(name, values[name])
        for name, key in KEYS.items()
        if type(values[name]) is not type(key.default) or not key.holds(values[name])
    ]
    return wrong or _misfits(values)


def _misfits(values: Mapping[str, Any]) -> list[str]:
    """Returns the faults of values that are right alone and wrong together."""
    misfits = []
    if values["microbatches"] > values["batch_size"]:
        misfits.append(
            f"config.microbatches is {values['microbatches']}: expected at most config.batch_size,"
            f" {values['batch_size']}, so that every part holds an example"
        )
    if values["early_stopping"] and not values["evaluate_every"]:
        misfits.append(
            f"config.early_stopping is {values['early_stopping']} and config.evaluate_every is 0:"
            " expected an evaluate_every of at least 1, as it is validations that are counted"
        )
    misfits += [
        f"config.method.init is {init!r} and config.method.init_{init} is empty: set it"
        for init in ("text", "file")
        if values["method.init"] == init and not values[f"method.init_{init}"]
    ]
    init, inits = values["method.init"], METHODS[values["method.name"]].inits
    if init not in inits:
        misfits.append(
            f"config.method.init is {short(init, 200)}: expected one of"
            f" {', '.join(map(repr, inits))} for {values['method.name']!r}{nearest(init, inits)}"
        )
    misfits += [
        f"config.generation.{name} is {values[f'generation.{name}']!r} and"
        " config.generation.temperature is 0.0, which takes the likeliest token: raise it"
        for name in ("top_k", "top_p")
        if not values["generation.temperature"]
        and values[f"generation.{name}"] != KEYS[f"generation.{name}"].default
    ]
    misfits += _unread(values, "method", {name: line.keys for name, line in METHODS.items()})
    return misfits + _unread(values, "optimizer", OPTIMIZERS) + settings.misfits(values, KEYS)


def _unread(
    values: Mapping[str, Any], section: str, reads: Mapping[str, tuple[str, ...]]
) -> list[str]:
    """Returns the faults of keys set in vain: `reads` has what each name of a section reads."""
    name, optional = values[f"{section}.name"], {key for keys in reads.values() for key in keys}
    unread = sorted(f"{section}.{key}" for key in optional.difference(reads[name]))
    return [
        f"config.{key} is {short(values[key], 200)} and {name!r} has no such setting: leave it"
        f" at {KEYS[key].default!r}"
        for key in unread
        if values[key] != KEYS[key].default
    ]


def _refuse(faults: list[str], path: str | None) -> None:
    if len(faults) == 1:
        raise UserError(faults[0])
    if faults:
        where = "the config" if path is None else f"config file {path!r} with its overrides"
        lines = [f"  {number}. {fault}" for number, fault in enumerate(faults, 1)]
        raise UserError("\n".join([f"{where} has {len(faults)} faults:", *lines]))
