"""A task: records of named fields, a template, a verbalizer, metrics and splits."""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from prompt_tuning_jax.data.template import Example, encode, parse, with_demonstrations
from prompt_tuning_jax.errors import UserError, nearest

Record = dict[str, str]


class Source(NamedTuple):
    """What a task's data holds, by the names of its splits, and what was left out of it."""

    splits: dict[str, list[Record]]
    counts: dict[str, int]


class Task(NamedTuple):
    """What is to be learnt. Nothing is read before `load` is called."""

    name: str
    template: str
    labels: tuple[tuple[str, str], ...]  # (value in the data, word that the model reads)
    metrics: tuple[str, ...]
    fields: tuple[str, ...]  # what the template may name
    load: Callable[[], Source]


def make(config: Any) -> Task:
    """Makes the task that `config` (the section `task` of a config) describes.

    Raises:
        UserError: an unknown name, a template that is not one or names an unknown field, or labels
            that are empty or not distinct.
    """
    name = config.name
    if name not in _TASKS:
        known = ", ".join(_TASKS)
        raise UserError(
            f"task.name is {name!r}, expected one of: {known}{nearest(name, list(_TASKS))}"
        )
    fields, load = _TASKS[name]
    check_fields(config.template, fields)
    labels = parse_labels(config.labels)
    return Task(name, config.template, labels, ("accuracy",), fields, lambda: load(config))


def check_fields(template: str, fields: Sequence[str]) -> None:
    """Raises a UserError if `template` is not one or names a field that is not among `fields`."""
    for field in parse(template).fields:
        if field.name not in fields:
            known = ", ".join(f"{{{name}}}" for name in fields)
            raise UserError(
                f"template {template!r}, position {field.place}: unknown field {{{field.name}}},"
                f" expected {known} or {{soft}}{nearest(field.name, [*fields, 'soft'])}"
            )


def parse_labels(labels: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Returns (value, word) of each entry 'value' or 'value=word'.

    Raises:
        UserError: fewer than two entries, an empty value or word, or one that occurs twice.
    """
    if len(labels) < 2:
        raise UserError(
            f"task.labels is {tuple(labels)!r}, expected at least two labels, such as"
            " ('negative', 'positive=great')"
        )
    pairs: list[tuple[str, str]] = []
    for place, entry in enumerate(labels):
        value, equals, word = (part.strip() for part in entry.partition("="))
        word = word if equals else value
        if not value or not word:
            raise UserError(
                f"task.labels[{place}] is {entry!r}, expected 'value' or 'value=word', neither"
                " part empty"
            )
        for earlier, (other_value, other_word) in enumerate(pairs):
            if value == other_value or word == other_word:
                repeated = f"value {value!r}" if value == other_value else f"word {word!r}"
                raise UserError(
                    f"task.labels[{place}] is {entry!r}, but task.labels[{earlier}] has the"
                    f" {repeated} already: give each label its own"
                )
        pairs.append((value, word))
    return tuple(pairs)


def records(task: Task, split: str) -> list[Record]:
    """Returns the records of `split`: 'train', 'train[:64]', 'test[10:20]' or 'train[:50%]'.

    The order is the same in every process. Every record has its label among the task's.

    Raises:
        UserError: an unknown split, a slice that is not one or holds no record, or a record whose
            label the task does not list.
    """
    match = _SPLIT.fullmatch(split)
    if not match:
        raise UserError(f"split {split!r} is none: expected 'train', 'train[:64]' or 'train[:50%]'")
    splits = task.load().splits
    name, start, stop = match["name"], match["start"], match["stop"]
    if name not in splits:
        raise UserError(
            f"split {split!r} of task {task.name} is unknown, expected one of:"
            f" {', '.join(splits)}{nearest(name, list(splits))}"
        )
    count = len(splits[name])
    first, last = _bound(start, 0, count), _bound(stop, count, count)
    if not 0 <= first < last <= count:
        raise UserError(
            f"split {split!r} of task {task.name} is no part of its {count} records: expected a"
            f" slice between 0 and {count} that holds at least one"
        )
    _check_labels(task, splits[name], name)
    return splits[name][first:last]


def examples(
    task: Task,
    rows: Sequence[Record],
    tokenizer: Any,
    *,
    num_virtual_tokens: int,
    add_bos: bool,
    max_length: int,
    template: str | None = None,
    demonstrations: Sequence[Record] = (),
) -> list[Example]:
    """Returns the example of each record with the task's words as answers, in the labels' order.

    Args:
        task: whose template and labels count.
        rows: records; one without a label becomes an example whose right answer is unknown.
        tokenizer: a `models.tokenizer.Tokenizer`.
        num_virtual_tokens: P, the length of the soft prompt.
        add_bos: whether every example begins with the tokenizer's BOS token.
        max_length: the most positions that an example may take, see `template.encode`.
        template: another template than the task's, for instance a hand-written prompt.
        demonstrations: records whose labels are known, rendered with their answers in front.

    Raises:
        UserError: as `template.parse` and `template.encode`; names the record.
    """
    text = task.template if template is None else template
    check_fields(text, task.fields)
    parsed = parse(text, tokenizer.specials)
    words = [word for _, word in task.labels]
    places = {value: place for place, (value, _) in enumerate(task.labels)}
    answered = [(row, words[places[row["label"]]]) for row in demonstrations]
    parsed = with_demonstrations(parsed, answered)
    encoded = []
    for number, row in enumerate(rows):
        try:
            example = encode(
                parsed,
                row,
                words,
                tokenizer,
                num_virtual_tokens=num_virtual_tokens,
                add_bos=add_bos,
                max_length=max_length,
                answer=places[row["label"]] if "label" in row else -1,
            )
        except UserError as error:
            raise UserError(f"record {number}: {error}") from error
        encoded.append(example)
    return encoded


def dropped(encoded: Sequence[Example]) -> tuple[int, int]:
    """Returns how many examples were too long and how many tokens they lost, for the log."""
    lost = np.array([example.dropped for example in encoded], dtype=np.int64)
    return int((lost > 0).sum()), int(lost.sum())


_BOUND = r"-?(?:\d{1,18}|\d{1,2}%|100%)"
_SPLIT = re.compile(rf"(?P<name>\w+)(?:\[(?P<start>{_BOUND})?:(?P<stop>{_BOUND})?\])?", re.ASCII)


def _bound(text: str | None, default: int, count: int) -> int:
    if not text:
        return default
    number = int(text.rstrip("%"))
    if text.endswith("%"):
        number = round(number * count / 100)
    return number + count if text.startswith("-") else number


def _check_labels(task: Task, rows: Sequence[Record], split: str) -> None:
    values = [value for value, _ in task.labels]
    for number, row in enumerate(rows):
        label = row["label"]
        if label not in values:
            raise UserError(
                f"record {number} of split {split!r} of task {task.name} has the label {label!r},"
                f" which task.labels does not list{nearest(label, values)}: expected one of:"
                f" {', '.join(values)}"
            )


def _bbc_news(config: Any) -> Source:
    # TensorFlow Datasets takes half a second to import.
    from prompt_tuning_jax.data import bbc_news

    splits, counts = bbc_news.load(config.split_seed)
    return Source(splits, counts)


# By name: the fields that a template may use, and what reads the data.
_TASKS: dict[str, tuple[tuple[str, ...], Callable[[Any], Source]]] = {
    "bbc_news": (("text",), _bbc_news),
}
