"""Configs: what differs from the defaults, from a file and from overrides, and checked."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from prompt_tuning_jax.config.key import faults, parse
from prompt_tuning_jax.config.read import parse_json, read_file
from prompt_tuning_jax.config.schema import all_keys, complete
from prompt_tuning_jax.errors import UserError, short


def load(path: str | os.PathLike | None, overrides: Sequence[str] = ()) -> ConfigDict:
    """Reads a config, applies the overrides and checks the result. Returns a locked ConfigDict with
    every key of its method, optimizer and kind of task, or raises a UserError with all faults.

    Args:
        path: a .py file with `get_config()`, a saved .json, or None for the defaults.
        overrides: words `--config.KEY=VALUE`. The last one of a key counts. Another
            `optimizer.name` than the file's begins at its defaults, with the file's `clip_norm`.
    """
    if path is None:
        return build({}, overrides)
    path = os.fspath(path)
    return build(read_file(path), overrides, f"config file {path!r} with its overrides")


def from_manifest(manifest: Mapping[str, Any], overrides: Sequence[str] = ()) -> ConfigDict:
    """Returns the config in an artifact's manifest. If the method is not known here, such as one of
    a notebook, the section `method` has the defaults: an artifact is used without its method."""
    from prompt_tuning_jax.methods import METHODS

    values = dict(manifest["config"])
    values.pop("parallel", None)  # of the machine that trained it
    if flatten(values).get("method.name") == manifest["method"] not in METHODS:
        values.pop("method", None)
    return build(values, overrides)


def build(
    values: Mapping[str, Any], overrides: Sequence[str] = (), where: str = "the config"
) -> ConfigDict:
    """Does what `load` does with nested values instead of a file; `where` begins an error."""
    from flax import traverse_util  # takes a second, as `all_keys` does

    every, given, found, typed = all_keys(), flatten(values), [], set()
    before = given.setdefault("optimizer.name", every["optimizer.name"].default)
    for word in [overrides] if isinstance(overrides, str) else overrides:
        name, equals, written = word.removeprefix("--config.").partition("=")
        if not word.startswith("--config.") or not equals:
            found.append(f"{word!r} is not an override: write --config.KEY=VALUE as one word")
        else:
            given[name] = parse(written, every[name]) if name in every else written
            typed.add(name)
    if given["optimizer.name"] != before:  # another one begins at its defaults
        kept = typed | {"optimizer.clip_norm"}
        given = {n: v for n, v in given.items() if n in kept or not n.startswith("optimizer.")}
    keys, values, unknown = complete(given, typed)
    found += [*unknown.values(), *faults(keys, values)]
    config = ConfigDict(traverse_util.unflatten_dict(values, sep=".")).lock()
    if len(found) == len(unknown) == 1 and "epoch" in (name := next(iter(unknown))):
        found[0] += _in_steps(given[name], config)
    _refuse(found, where)
    return config


def validate(config: ConfigDict) -> None:
    """Raises a UserError that names every fault of `config`: keys, types, values and their fit."""
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"the config is a {type(config).__name__}: make one with config.load(FILE), or with"
            " config.build({...}) of what differs from the defaults"
        )
    given = flatten(config.to_dict())
    keys, values, unknown = complete(given)
    missing = [
        f"config.{name} is missing: expected {key.expected}"
        for name, key in keys.items()
        if name not in given
    ]
    _refuse([*unknown.values(), *missing, *faults(keys, values)])


def to_json(config: ConfigDict) -> str:
    """Returns the config as text that `load` reads from a .json and `difference` compares."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"


def difference(saved: str, config: ConfigDict) -> list[str]:
    """Returns a line for each key that has another value in the JSON `saved` than in `config`. A
    key that `saved` lacks had the default. A run may go on over other devices: `parallel` does not
    count."""
    given = flatten(parse_json(saved, "the saved config"))
    _, values, unknown = complete(given)
    before = values | {name: given[name] for name in unknown}
    now = flatten(config.to_dict())
    return [
        f"config.{short(name, 200)[1:-1]} was {_shown(before, name)} and is {_shown(now, name)} now"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name) and not name.startswith("parallel.")
    ]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the leaves of nested mappings by their dotted path. An empty mapping is a leaf."""
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        inside = isinstance(value, Mapping) and value
        leaves |= flatten(value, f"{prefix}{name}.") if inside else {f"{prefix}{name}": value}
    return leaves


def _in_steps(epochs: Any, config: ConfigDict) -> str:
    """Returns how many steps so many epochs are, in words, or "" if the data cannot be read."""
    from prompt_tuning_jax.data.task import make_task, training_records

    try:
        examples = len(training_records(make_task(config.task), config.task))
        steps = math.ceil(float(epochs) * examples / config.batch_size)
    except (UserError, TypeError, ValueError, OverflowError):
        return ""
    return f"; {epochs} epochs of {examples:,} examples are config.steps={steps}"


def _shown(values: Mapping[str, Any], name: str) -> str:
    return short(values[name], 1000) if name in values else "not set"


def _refuse(found: Sequence[str], where: str = "the config") -> None:
    """Raises a UserError with all faults, if there are any."""
    if len(found) == 1:
        raise UserError(found[0])
    if found:
        lines = [f"  {number}. {fault}" for number, fault in enumerate(found, 1)]
        raise UserError("\n".join([f"{where} has {len(found)} faults:", *lines]))
