"""The rows of a comparison: names with overrides of one config, and their runs by seed and rate."""

import math
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from prompt_tuning_jax import config as configs
from prompt_tuning_jax.config.key import Key, among, string, strings
from prompt_tuning_jax.data.records import LABEL
from prompt_tuning_jax.data.task import make_task, validation_records
from prompt_tuning_jax.errors import UserError, nearest, short
from prompt_tuning_jax.methods import METHODS
from prompt_tuning_jax.run import folder as folders

# Rows without training, and the part of the config that each reads alone, if any.
WAYS = {
    "no prompt": "",
    "written prompt": "prompts",
    "demonstrations": "demonstrations",
    "searched prompt": "search",
}
LONGEST = 60  # characters of a name, which is that of a folder and stands beside a picture
_SHARED = re.compile(r"(model|parallel|compare|task\.(test|split_seed|name|files|target))\b|seed=")


def _numbers(default: tuple) -> Key:
    def holds(value: tuple) -> bool:
        numbers = all(type(item) is int and item >= 0 for item in value)
        return numbers and len({*value}) == len(value)

    return Key(default, "different whole numbers of at least 0, as (0, 1, 2)", holds)


KEYS = {
    # 'NAME' or 'NAME: KEY=VALUE KEY=VALUE'. The name is one of `WAYS`, a method, or any other name
    # if `method.name=` is given. A row with another method or optimizer begins at its defaults.
    # (): all of these, without the search, which takes half an hour, and without written prompts
    # if the config has none.
    # 'demonstrations' has 16 of them, unless demonstrations.number says otherwise.
    "rows": strings(),
    "seeds": _numbers((0, 1, 2)).if_fits("at least one", lambda value, _: bool(value)),
    # 'NAME: RATE RATE': tried with the first seed, to the last validation in a run's first half.
    # The best goes on, and is the rate of all seeds.
    "learning_rates": strings(),
    # Examples of each label to train on, and to validate with if there are so many; 0: all.
    "examples_per_class": _numbers(()),
    # The trained rows that are repeated with so few, at the best rate with all examples; () repeats
    # all of them.
    "curve": strings(),
    # How rows without training are calibrated too, see `evaluate --calibrate`; '' for not at all,
    # as with a target.
    "calibrate": among("labels", ("", "labels", "texts")),
    # The texts that forgetting is measured on: a file with a text a line, or 'bbc_news', articles.
    "unrelated": string(""),
}


class Row(NamedTuple):
    """A row: its name, its overrides as typed, and the learning rates to try, if any."""

    name: str
    overrides: tuple[str, ...]
    rates: tuple[float, ...] = ()

    @property
    def is_trained(self) -> bool:
        """Whether it has a method."""
        return self.name not in WAYS

    @property
    def folder(self) -> str:
        """The name of the folder with its runs."""
        return re.sub(r"\W+", "_", self.name)


class Run(NamedTuple):
    """A run of a row: its config and folder."""

    row: Row
    config: Any
    folder: Path


def read_rows(config) -> list[Row]:
    """Returns the rows of a config; raises a UserError for one that cannot be run."""
    rows: dict[str, Row] = {}
    methods = [name.replace("_", " ") for name in METHODS]
    missing = ["searched prompt", *["written prompt"] * (not config.prompts)]
    missing += ["fine tuning"] * bool(config.model.quantize)  # int8, over which it cannot train
    for entry in config.compare.rows or [name for name in (*WAYS, *methods) if name not in missing]:
        row = _read_row(entry)
        # Some disks do not tell A from a.
        if any(row.folder.lower() == other.folder.lower() for other in rows.values()):
            raise UserError(f"config.compare.rows has {row.name!r} twice: give each its own name")
        rows[row.name] = row
    trained = [name for name, row in rows.items() if row.is_trained]
    for entry in config.compare.learning_rates:
        name, _, rest = (part.strip() for part in entry.partition(":"))
        # A method that is not among the rows may have rates too.
        _check_name(name, [*trained, *methods], "learning_rates")
        try:
            rates = tuple(float(word) for word in rest.replace(",", " ").split())
        except ValueError:
            rates = ()
        if not rates or not all(0 < rate < math.inf for rate in rates):
            raise UserError(
                f"config.compare.learning_rates has {entry!r}: expected 'ROW: RATE RATE' with"
                " numbers above 0"
            )
        if name in rows:
            rows[name] = rows[name]._replace(rates=(*dict.fromkeys(rows[name].rates + rates),))
        named = f"--config.method.name={name.replace(' ', '_')}"
        own = [row.name for row in rows.values() if named in row.overrides]
        if own and name not in rows:
            raise UserError(f"config.compare.learning_rates has {name!r}: write {own[0]!r}")
    for name in config.compare.curve:
        _check_name(name, trained, "curve")
    return list(rows.values())


def _read_row(entry: str) -> Row:
    """Reads 'NAME: KEY=VALUE KEY=VALUE'."""
    name, _, rest = (part.strip() for part in entry.partition(":"))
    try:
        words = shlex.split(rest)
    except ValueError as error:
        raise UserError(
            f"config.compare.rows has {short(entry, 200)}: a quotation mark has no partner"
        ) from error
    method = name.replace(" ", "_")
    is_named = name and any(word.startswith("method.name=") for word in words)
    if not is_named and method in METHODS:
        name, words = method.replace("_", " "), [f"method.name={method}", *words]
    elif not is_named and name not in WAYS:
        names = [*WAYS, *(each.replace("_", " ") for each in METHODS)]
        raise UserError(
            f"config.compare.rows has {name!r}, which names no method{nearest(name, names)}:"
            f" expected one of {', '.join(names)}, or method.name=METHOD after a colon"
        )
    if len(name) > LONGEST or re.sub(r"\W+", "_", name) in folders.WRITTEN:
        raise UserError(
            f"config.compare.rows has {short(name, 80)}: give another name, of at most {LONGEST}"
            " characters"
        )
    # The parts of the config that other ways read, and the method of a row without training.
    others = {part for way, part in WAYS.items() if part and way != name}
    if name in WAYS:
        others |= {"method", "optimizer", "schedule", "teacher", "steps", "learning_rate"}
    for word in words:
        if "=" not in word[1:]:
            raise UserError(f"config.compare.rows has {word!r} in {name!r}: write KEY=VALUE")
        is_shared, is_unread = _SHARED.match(word), re.split("[.=]", word)[0] in others
        if is_shared or is_unread:
            why = "which all rows share" if is_shared else "which does not read it"
            raise UserError(f"config.compare.rows has {word!r} in {name!r}, {why}: leave it out")
    return Row(name, tuple(f"--config.{word}" for word in words))


def _check_name(name: str, trained: Sequence[str], key: str) -> None:
    if name not in trained:
        raise UserError(
            f"config.compare.{key} has {name!r}{nearest(name, trained)}: expected a trained row,"
            f" one of {', '.join(dict.fromkeys(trained))}"
        )


def make_run(
    config, folder: Path, row: Row, seed: int, rate: float | None = None, examples: int = 0
) -> Run:
    """Returns a run of a row. Rows that are added later leave its config as it is."""
    values = config.to_dict()
    del values["compare"]
    for name, part in WAYS.items():
        if part and name != row.name:
            del values[part]
    chosen = dict(word.removeprefix("--config.").partition("=")[::2] for word in row.overrides)
    if chosen.get("method.name", config.method.name) != config.method.name:
        # These are the config's method's own.
        del values["method"], values["learning_rate"]
    if row.name == "demonstrations":
        values["demonstrations"]["number"] = config.demonstrations.number or 16
    words = [*row.overrides, f"--config.seed={seed}"]
    if rate is not None:
        words.append(f"--config.learning_rate={rate}")
    if examples:
        own = configs.build(values, row.overrides).task
        held = validation_records(make_task(own), own)
        labels = [record.get(LABEL) for record in held]
        few = {"examples_per_class": examples, "draw_seed": seed}
        few["validation_per_class"] = min(examples, *map(labels.count, set(labels)))
        words += [f"--config.task.{name}={value}" for name, value in few.items()]
    try:
        made = configs.build(values, words)
    except UserError as error:
        raise UserError(f"the row {row.name!r}: {error}") from error
    parts = [f"seed-{seed}", f"examples-{examples}" * bool(examples)]
    if row.is_trained:
        parts.insert(0, f"rate-{made.learning_rate:g}")
    return Run(row, made, folder / row.folder / ",".join(filter(None, parts)))
