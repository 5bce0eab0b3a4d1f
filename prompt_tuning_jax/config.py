"""Configs: every key with its default, read from a file, changed by overrides, checked.

A config file is Python with a function `get_config()`, executed like any script, or the JSON that
a run saved, which is never executed. It states what differs from the defaults in `KEYS`. Nothing
here imports jax, so a fault is reported in a fraction of a second.
"""

import json
import math
import os
import runpy
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags

from prompt_tuning_jax.data import settings
from prompt_tuning_jax.errors import UserError, nearest, short
from prompt_tuning_jax.methods import METHODS

# The keys of `config.optimizer` that each optimizer reads, beside `name` and `clip_norm`.
OPTIMIZERS: dict[str, tuple[str, ...]] = {
    "adafactor": (
        "weight_decay",
        "decay_rate",
        "decay_offset",
        "multiply_by_parameter_scale",
        "clipping_threshold",
    ),
    "adam": ("b1", "b2"),
    "adamw": ("b1", "b2", "weight_decay"),
    "sgd": ("b1",),
}
SCHEDULES = ("constant", "cosine", "linear")

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
    TypeError,
    ValueError,
)


class Key(NamedTuple):
    """A key of a config. The type of its default is the type of its values."""

    default: Any
    expected: str
    holds: Callable[[Any], bool]
    names: Collection[str] = ()


def _whole(default: int, least: int) -> Key:
    return Key(default, f"a whole number of at least {least}", lambda value: value >= least)


def _number(default: float, least: float = 0.0, most: float = math.inf) -> Key:
    limit = "" if most == math.inf else f" and at most {most:g}"
    return Key(
        default,
        f"a number of at least {least:g}{limit}",
        lambda value: least <= value <= most and math.isfinite(value),
    )


def _among(default: str, names: Collection[str]) -> Key:
    # Not a copy: a notebook may add a line of its own to a table of names.
    return Key(
        default, f"one of {', '.join(map(repr, names))}", lambda value: value in names, names
    )


def _switch(default: bool) -> Key:
    return Key(default, "true or false", lambda value: True)


def _text(default: str, least: int = 0) -> Key:
    expected = "a text that is not empty" if least else "a text"
    return Key(default, expected, lambda value: len(value) >= least)


def _texts(default: tuple[str, ...], least: int = 0) -> Key:
    number = f"at least {least} " if least else ""
    return Key(
        default,
        f"{number}texts, none of them empty, as ('first', 'second')",
        lambda value: len(value) >= least and all(type(item) is str and item for item in value),
    )


def _part(default: float) -> Key:
    return Key(
        default,
        "a share above 0 and below 1, or a whole number of records",
        lambda value: 0 < value < 1 or (value >= 1 and value.is_integer()),
    )


KEYS: dict[str, Key] = {
    "seed": Key(0, "a whole number from 0 to 4294967295", lambda value: 0 <= value < 2**32),
    "steps": _whole(200, 1),
    # Examples in an update, exactly; `microbatches` parts of it are in memory one after the other.
    "batch_size": _whole(16, 1),
    "microbatches": _whole(1, 1),
    "learning_rate": Key(
        0.02, "a number above 0", lambda value: value > 0.0 and math.isfinite(value)
    ),
    "parallel": _among("jit", ("jit", "pmap")),
    # Every so many steps; 0 is only at the end.
    "evaluate_every": _whole(50, 0),
    "save_every": _whole(50, 0),
    "log_every": _whole(10, 1),
    # Validations in a row without a better loss, after which a run ends; 0 is never.
    "early_stopping": _whole(0, 0),
    # Steps to trace with jax's profiler; 0 is none.
    "profile_steps": _whole(0, 0),
    # Where metrics go beside the run folder: a package that is installed, or '' for nowhere.
    "tracker": _among("", ("", "wandb", "trackio")),
    "optimizer.name": _among("adamw", OPTIMIZERS),
    "optimizer.weight_decay": _number(0.0),
    # The largest global norm of the gradient; 0 is no clipping.
    "optimizer.clip_norm": _number(1.0),
    # Adam's decay of the first and the second moment; b1 is also the momentum of sgd.
    "optimizer.b1": _number(0.9, most=1.0),
    "optimizer.b2": _number(0.999, most=1.0),
    # Adafactor's, as optax names them.
    "optimizer.decay_rate": _number(0.8, most=1.0),
    "optimizer.decay_offset": Key(0, "a whole number", lambda value: True),
    "optimizer.multiply_by_parameter_scale": _switch(False),
    "optimizer.clipping_threshold": _number(1.0),
    # The warm-up is the first part of `steps`, or all of them, and rises in a straight line.
    "schedule.name": _among("cosine", SCHEDULES),
    "schedule.warmup_steps": _whole(20, 0),
    # An embedded model's name, a GGUF file or a Hugging Face folder.
    "model.path": _text("smollm2-135m-instruct", least=1),
    # 'auto' is float32 on a CPU and bfloat16 elsewhere.
    "model.dtype": _among("auto", ("auto", "float32", "bfloat16", "float16")),
    # Of matrix products; '' is the platform's default.
    "model.matmul_precision": _among("highest", ("", "default", "high", "highest")),
    # What the backward pass keeps: the names in models/decoder.py.
    "model.remat": _among("named", ("named", "full", "none")),
    "method.name": _among(next(iter(METHODS)), METHODS),
    "method.num_virtual_tokens": _whole(16, 1),
    "method.init": _text("vocabulary", least=1),
    # The half-width of 'uniform', the deviation of 'random'.
    "method.init_scale": _number(0.5),
    "method.init_text": _text(""),
    # Sample from the first n tokens of the vocabulary only; 0 is all of it.
    "method.init_vocabulary": _whole(0, 0),
    "method.init_file": _text(""),
    # Width of the network that a method trains and then leaves out; 0 is the method's own choice.
    "method.hidden_size": _whole(0, 0),
    "task.name": _text("bbc_news", least=1),
    "task.split_seed": _whole(0, 0),
    "task.train": _text("train", least=1),
    "task.validation": _text("validation", least=1),
    "task.test": _text("test", least=1),
    "task.template": _text("{soft}Headline: {text}\nTopic:", least=1),
    # 'value' as it stands in the data, or 'value=word' where the model reads another word; () takes
    # the values that the training split has.
    "task.labels": Key(
        (),
        "at least two texts, none of them empty, as ('first', 'second'), or ()",
        lambda value: len(value) != 1 and all(type(item) is str and item for item in value),
    ),
    # Instead of labels: the text to write, a template over fields such as '{summary}'.
    "task.target": _text(""),
    # () is accuracy with labels, all that there are with a target.
    "task.metrics": _texts(()),
    # So many training examples of each label, drawn by `split_seed`; 0 is all there are.
    "task.examples_per_class": _whole(0, 0),
    # 'field=column' where the data has another name than the template; the label's field is
    # `label`. A column without a name has its number, from 1. Of several columns for a field the
    # first that a file has counts.
    "task.columns": Key(
        (),
        "texts 'field=column', as ('text=sentence', 'label=2')",
        lambda value: all(type(item) is str and settings.column(item) for item in value),
    ),
    # Where TensorFlow Datasets keeps what it prepared; '' is its own default.
    "task.data_dir": _text(""),
    # .jsonl, .csv or .tsv. What is not given of validation and test is a part of the training file.
    "task.files.train": _text(""),
    "task.files.validation": _text(""),
    "task.files.test": _text(""),
    "task.files.validation_part": _part(0.1),
    "task.files.test_part": _part(0.1),
    # '' goes by the file's ending. Quotes mean something unless the delimiter is a tab.
    "task.files.delimiter": _text(""),
    # Whether the first line names the columns.
    "task.files.header": _switch(True),
    # Tokens in an example; 0 is as many as the model has positions.
    "task.max_length": _whole(0, 0),
    # What a task with a target writes: at most so many tokens a text, drawn at a temperature (0
    # takes the likeliest) from the `top_k` likeliest (0 is all) and of these from as many of the
    # likeliest as have the share `top_p`, until one of the strings `stop` comes, which is left out.
    "generation.max_new_tokens": _whole(64, 1),
    "generation.temperature": Key(
        0.0,
        "0, or a number of at least 0.001",
        lambda value: value == 0 or (value >= 0.001 and math.isfinite(value)),
    ),
    "generation.top_k": _whole(0, 0),
    "generation.top_p": Key(1.0, "a number above 0 and at most 1", lambda value: 0 < value <= 1),
    "generation.stop": _texts(()),
    # Texts that are written at once.
    "generation.batch_size": _whole(16, 1),
    # Hand-written templates that the report compares the trained prompt with.
    "prompts": _texts(()),
}


def load(path: str | None, overrides: Sequence[str] = ()) -> ConfigDict:
    """Reads a config, applies the overrides and checks the whole.

    Args:
        path: a .py file with `get_config()`, a saved .json, or None for the defaults.
        overrides: words `--config.KEY=VALUE`, the last of a key counts.

    Returns:
        A locked ConfigDict that holds every key of `KEYS`.

    Raises:
        UserError: the file is missing or broken; or all faults of keys and values at once.
    """
    return build({} if path is None else _read(path), overrides, path)


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
    """Returns the leaves of nested mappings by their dotted path."""
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            leaves |= flatten(value, f"{prefix}{name}.")
        else:
            leaves[f"{prefix}{name}"] = value
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
    if kind is float and type(value) is int:
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
