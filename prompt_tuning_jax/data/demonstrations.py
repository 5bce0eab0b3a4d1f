"""Demonstrations: answered training records in front of the question. The choice depends on the
seed and the records' text alone, not on their order or on the machine."""

import collections
import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any

from prompt_tuning_jax.config.key import whole
from prompt_tuning_jax.data.records import UNLABELLED
from prompt_tuning_jax.data.task import Task, output_fields, select_records, training_records
from prompt_tuning_jax.data.template import field_names, with_prompt
from prompt_tuning_jax.errors import UserError

Rows = Sequence[Mapping[str, str]]
KEY = "demonstrations.number"
KEYS = {"number": whole(0)}  # in front of each example that is evaluated without an artifact


def choose_demonstrations(rows: Rows, number: int, *, balanced: bool, seed=0, key=KEY) -> Rows:
    """Chooses `number` training records to demonstrate with, of each label in turn if `balanced`.
    The first few are a good choice too. `key` is the setting that an error names."""
    if number > len(rows):
        raise UserError(
            f"config.{key} is {number} and {len(rows)} training records can be shown: give fewer"
        )
    drawn = sorted(rows, key=lambda row: _digest(row, seed))
    if not balanced:
        return drawn[:number]
    # The other half of the digest: with the same half a frequent label would come first.
    turns = [(turn, _digest(row, seed)[16:], n) for n, (turn, row) in enumerate(_in_turn(drawn))]
    return [drawn[place] for _, _, place in sorted(turns)[:number]]


def training_demonstrations(
    task: Task, config: Any, prompts: Iterable[str] = (), key: str = KEY, scored: Rows = ()
) -> Rows:
    """Returns as many of `unscored` as the setting `key` says, as `only_read` gives them."""
    if not (number := attrgetter(key)(config)):
        return []
    spare, how = unscored(task, config, key, scored), {"seed": config.seed, "key": key}
    chosen = choose_demonstrations(spare, number, balanced=bool(task.labels), **how)
    return only_read(task, chosen, prompts)


def unscored(task: Task, config: Any, key: str, scored: Rows = ()) -> Rows:
    """Returns the training records with the input of no record of the validation and test splits,
    of those that calibrate, or in `scored`. The setting `key` asks for them."""
    rows, held = training_records(task, config.task, labelled=False), [*scored]
    rows = [row for row in rows if UNLABELLED not in row]
    if key == KEY or not rows:  # else there may be a teacher, and records without labels
        rows = training_records(task, config.task)
    for name in (config.task.validation, config.task.test, config.calibration.split):
        with contextlib.suppress(UserError):  # there may be no such split
            held += select_records(task, name, labelled=False)
    if not (spare := _others(rows, held, field_names(task.template))):
        wrong = f"all {len(rows)} records of config.task.train are in a split that is scored"
        raise UserError(f"{wrong}, and none is left for config.{key}: give another split")
    return spare


def only_read(task: Task, rows: Rows, prompts: Iterable[str] = ()) -> Rows:
    """Returns records with their answers and with the fields that the template reads, also with
    each of some written prompts: others, such as an address, are not for an artifact."""
    templates = [task.template, *(with_prompt(task.template, prompt) for prompt in prompts)]
    names = {*output_fields(task), *(name for text in templates for name in field_names(text))}
    return [{name: text for name, text in row.items() if name in names} for row in rows]


def spare_half(rows: Rows, *, balanced: bool, seed: int) -> Rows:
    """Returns at most half of the records, of each label if `balanced`, in the order in which
    `choose_demonstrations` takes them."""
    chosen = choose_demonstrations(rows, len(rows), balanced=balanced, seed=seed)
    if not balanced:
        return chosen[: len(rows) // 2]
    totals = collections.Counter(row["label"] for row in rows)
    return [row for turn, row in _in_turn(chosen) if 2 * (turn + 1) <= totals[row["label"]]]


def without_demonstrations(rows: Rows, shown: Rows, fields: Sequence[str]) -> list[Any]:
    """Returns the records whose `fields` equal those of no demonstration in `shown`."""
    if not (left := _others(rows, shown, fields)):
        raise UserError(f"all {len(rows)} training records are demonstrations: give fewer of these")
    return left


def _others(rows: Rows, known: Rows, fields: Sequence[str]) -> list[Any]:
    inputs = {tuple(map(row.get, fields)) for row in known}
    return [row for row in rows if tuple(map(row.get, fields)) not in inputs]


def _in_turn(rows: Rows) -> Iterator[tuple[int, Mapping[str, str]]]:
    """Yields each record, and how many of its label came before."""
    seen: collections.Counter[str] = collections.Counter()
    for row in rows:
        yield seen[row["label"]], row
        seen[row["label"]] += 1


def _digest(row: Mapping[str, str], seed: int) -> bytes:
    # A record's place is not one of its fields.
    fields = {name: text for name, text in row.items() if name.isidentifier()}
    return hashlib.sha256(f"{seed}\n{json.dumps(fields, sort_keys=True)}".encode()).digest()
