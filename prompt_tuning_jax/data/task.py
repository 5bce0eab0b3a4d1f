"""A task: records of named fields, a template, labels or a text target, metrics and splits."""

import functools
import importlib
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from prompt_tuning_jax.data.example import Example, encode
from prompt_tuning_jax.data.records import LABEL, Record, Source, names, ranked
from prompt_tuning_jax.data.settings import LABEL_METRICS, PLACE, TEXT_METRICS
from prompt_tuning_jax.data.template import (
    Field,
    Slot,
    Special,
    Template,
    parse,
    with_demonstrations,
)
from prompt_tuning_jax.errors import UserError, nearest, short

_MOST_LABELS = 100  # distinct values in the data, above which they are hardly labels


class Kind(NamedTuple):
    """A kind of task: the module whose `source(config)` reads a `Source`, imported when the data
    is read, the fields that a template may name, () if the data decides, and the labels where a
    config has none, () again."""

    module: str
    fields: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()


TOPICS = ("business", "entertainment", "politics", "sport=sports", "tech=technology")


# By the part of `task.name` in front of a colon.
KINDS = {
    "bbc_news": Kind("bbc_news", ("text",), TOPICS),
    "files": Kind("files"),
    "tfds": Kind("tfds"),
}


class Task(NamedTuple):
    """What is to be learnt. Nothing is read before `load` is called."""

    name: str
    template: str
    labels: tuple[tuple[str, str], ...]  # (value in the data, word that the model reads)
    metrics: tuple[str, ...]
    fields: tuple[str, ...]  # what a template may name, () if the data decides
    load: Callable[[], Source]
    target: str = ""  # a template of what the model is to write, in place of labels


def make(config: Any, labels: Sequence[Sequence[str]] = ()) -> Task:
    """Makes the task that `config` (the section `task` of a config) describes.

    Args:
        config: checked, with every key of the section.
        labels: (value, word) of each label where they are known, as in an artifact's manifest.
            Otherwise those of the config count, or if it has none and no target, those of the
            kind of task or the values that its training split has; only for these the data is
            read here.

    Raises:
        UserError: an unknown name, a template that is not one or names an unknown field or none,
            or labels that are empty or not distinct.
    """
    name = config.name
    kind = KINDS.get(name.partition(":")[0])
    if kind is None or (":" in name) != (kind is KINDS["tfds"]):
        known = ", ".join(f"{key}:NAME" if key == "tfds" else key for key in KINDS)
        raise UserError(
            f"task.name is {short(name, 200)}, expected one of: {known}{nearest(name, list(KINDS))}"
        )
    module = f"prompt_tuning_jax.data.{kind.module}"
    load = functools.cache(lambda: importlib.import_module(module).source(config))
    task = Task(name, config.template, (), tuple(config.metrics), kind.fields, load, config.target)
    _check_template(task)
    if task.target:
        return task._replace(metrics=task.metrics or TEXT_METRICS)
    task = task._replace(metrics=task.metrics or LABEL_METRICS[:1])
    words = config.labels or kind.labels
    if labels or words:
        pairs = tuple((value, word) for value, word in labels) or parse_labels(words)
        return task._replace(labels=pairs)
    pairs = _found_labels(task, config.train)
    note = f"the labels are those of {config.train}: {', '.join(repr(value) for value, _ in pairs)}"
    source = load()
    source = source._replace(notes=[*source.notes, note])
    return task._replace(labels=pairs, load=lambda: source)


def check_fields(template: str, fields: Sequence[str]) -> None:
    """Raises a UserError if `template` is not one or names a field that is not among `fields`,
    unless these are unknown: ()."""
    for field in parse(template).fields:
        if fields and field.name not in fields:
            known = ", ".join(f"{{{name}}}" for name in fields)
            raise UserError(
                f"template {short(template, 200)}, position {field.place}: unknown field"
                f" {{{field.name}}}, expected {known} or {{soft}}"
                f"{nearest(field.name, [*fields, 'soft'])}"
            )


def fields(task: Task, row: Record) -> tuple[str, ...]:
    """Returns what a template may name: what the task says, or what a record of its data has."""
    return task.fields or tuple(name for name in row if name not in (PLACE, *_outputs(task)))


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
    name, start, stop = _parts(split)
    rows = _whole(task, name)
    count = len(rows)
    first, last = _bound(start, 0, count), _bound(stop, count, count)
    if not 0 <= first < last <= count:
        raise UserError(
            f"split {split!r} of task {task.name} is no part of its {count} records: expected a"
            f" slice between 0 and {count} that holds at least one"
        )
    if not task.target:
        _check_labels(task, rows, name)
    return rows[first:last]


def training(task: Task, config: Any) -> list[Record]:
    """Returns the records to train on: of `config.train`, or `config.examples_per_class` of each
    label in it, which `config.split_seed` and the records' own text decide about.

    Raises:
        UserError: as `records`, or a label that has fewer.
    """
    rows, most = records(task, config.train), config.examples_per_class
    if not most:
        return rows
    found: dict[str, list[Record]] = {value: [] for value, _ in task.labels}
    for group in ranked(rows, names(task.template), config.split_seed):
        for row in group:
            found[row[LABEL]].append(row)
    few = [f"{len(held)} of {value!r}" for value, held in found.items() if len(held) < most]
    if few:
        raise UserError(
            f"config.task.examples_per_class is {most} and split {config.train!r} has"
            f" {' and '.join(few)}: give at most {min(map(len, found.values()))}, or more data"
        )
    return [row for held in found.values() for row in held[:most]]


def grouped(task: Task, rows: Sequence[Record]) -> tuple[list[Record], list[list[str]]]:
    """Returns the first record of each distinct input, and the target texts of all with that input.

    Args:
        task: with a target.
        rows: records, the order of whose inputs is kept.
    """
    firsts: dict[tuple[str, ...], Record] = {}
    texts: dict[tuple[str, ...], list[str]] = {}
    fields, target = names(task.template), parse(task.target)
    for row in rows:
        key = tuple(row[field] for field in fields)
        firsts.setdefault(key, row)
        texts.setdefault(key, []).append(_filled(target, row))
    return list(firsts.values()), list(texts.values())


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
    """Returns the example of each record: with the task's words as answers, in the labels' order,
    or with its target, ended by the tokenizer's EOS token, as the only one.

    Args:
        task: whose template and labels or target count.
        rows: records; one without a label becomes an example whose right answer is unknown, one
            without the target's fields an example without answers.
        tokenizer: a `models.tokenizer.Tokenizer`.
        num_virtual_tokens: P, the length of the soft prompt.
        add_bos: whether every example begins with the tokenizer's BOS token.
        max_length: the most positions that an example may take, see `example.encode`.
        template: another template than the task's, for instance a hand-written prompt.
        demonstrations: records whose labels are known, rendered with their answers in front.

    Raises:
        UserError: as `template.parse` and `example.encode`; names the record.
    """
    text = task.template if template is None else template
    check_fields(text, task.fields)
    _check_outputs(task, text)
    answers = _to_write(task, tokenizer) if task.target else _to_rank(task)
    ending = [tokenizer.eos_id] if task.target else []
    # The space in front of a text is the text's: whether it is a token of its own depends on what
    # follows, which is not known when the model is asked.
    parsed = parse(text.removesuffix(" ") if task.target else text, tokenizer.specials)
    shown = []
    for number, row in enumerate(demonstrations):
        words, answer = answers(row)
        if answer < 0:
            raise UserError(f"demonstration {number} has no answer: give it the label, or the text")
        shown.append((row, words[answer]))
    parsed = with_demonstrations(parsed, shown)
    encoded = []
    for number, row in enumerate(rows):
        try:
            words, answer = answers(row)
            example = encode(
                parsed,
                row,
                words,
                tokenizer,
                num_virtual_tokens=num_virtual_tokens,
                add_bos=add_bos,
                max_length=max_length,
                answer=answer,
                ending=ending,
            )
        except UserError as error:
            raise UserError(f"{row.get(PLACE, f'record {number}')}: {error}") from error
        encoded.append(example)
    return encoded


def dropped(encoded: Sequence[Example]) -> tuple[int, int]:
    """Returns how many examples were too long and how many tokens they lost, for the log."""
    lost = np.array([example.dropped for example in encoded], dtype=np.int64)
    return int((lost > 0).sum()), int(lost.sum())


_BOUND = r"-?(?:\d{1,18}|\d{1,2}%|100%)"
_SPLIT = re.compile(
    rf"(?P<name>[\w.-]+)(?:\[(?P<start>{_BOUND})?:(?P<stop>{_BOUND})?\])?", re.ASCII
)


def _parts(split: str) -> tuple[str, str | None, str | None]:
    match = _SPLIT.fullmatch(split)
    if not match:
        raise UserError(f"split {split!r} is none: expected 'train', 'train[:64]' or 'train[:50%]'")
    return match["name"], match["start"], match["stop"]


def _whole(task: Task, name: str) -> list[Record]:
    splits = task.load().splits
    if name not in splits:
        raise UserError(
            f"split {name!r} of task {task.name} is unknown, expected one of:"
            f" {', '.join(splits)}{nearest(name, list(splits))}"
        )
    return splits[name]


def _bound(text: str | None, default: int, count: int) -> int:
    if not text:
        return default
    number = int(text.rstrip("%"))
    if text.endswith("%"):
        number = round(number * count / 100)
    return number + count if text.startswith("-") else number


def _check_template(task: Task) -> None:
    """Raises a UserError for a template or target that names no field, or a wrong one."""
    check_fields(task.template, task.fields)
    _check_outputs(task, task.template)
    if not names(task.template):
        raise UserError(
            f"template {short(task.template, 200)} names no field of the data, so that all"
            " examples would be alike: write {text} where the text stands"
        )
    if task.target:
        check_fields(task.target, task.fields)
        _check_target(task.target, ())


def _check_target(target: str, specials: Sequence[str]) -> Template:
    parsed = parse(target, specials)
    if not parsed.fields or any(isinstance(piece, Slot | Special) for piece in parsed.pieces):
        raise UserError(
            f"task.target is {short(target, 200)}: expected text with at least one field, as"
            " '{summary}', without slots and special tokens (the token that ends a text is added)"
        )
    return parsed


def _outputs(task: Task) -> tuple[str, ...]:
    return names(task.target) if task.target else (LABEL,)


def _check_outputs(task: Task, template: str) -> None:
    for field in parse(template).fields:
        if field.name in _outputs(task):
            raise UserError(
                f"template {short(template, 200)}, position {field.place}: {{{field.name}}} is"
                " what the model has to find: expected other fields of the data"
            )


def _check_labels(task: Task, rows: Sequence[Record], split: str) -> None:
    values = [value for value, _ in task.labels]
    for number, row in enumerate(rows):
        label = row[LABEL]
        if label not in values:
            place = row.get(PLACE, f"record {number} of split {split!r} of task {task.name}")
            raise UserError(
                f"{place} has the label {label!r}, which task.labels does not"
                f" list{nearest(label, values)}: expected one of: {', '.join(values)}"
            )


def _found_labels(task: Task, split: str) -> tuple[tuple[str, str], ...]:
    """The distinct labels of a split in order, each as its own word."""
    name, _, _ = _parts(split)
    values = sorted({row[LABEL] for row in _whole(task, name)})
    if not 2 <= len(values) <= _MOST_LABELS:
        shown = ", ".join(repr(value[:40]) for value in values[:5])
        raise UserError(
            f"split {name!r} of task {task.name} has {len(values)} labels ({shown}"
            f"{', …' if len(values) > 5 else ''}): expected 2 to {_MOST_LABELS}; list them in"
            " task.labels, name the label's column in task.columns, or set task.target for a text"
        )
    return tuple((value, value) for value in values)


_Answers = Callable[[Record], tuple[Sequence[str], int]]


def _to_rank(task: Task) -> _Answers:
    """Returns what gives a record's answers: all words, and which is right."""
    words = [word for _, word in task.labels]
    places = {value: place for place, (value, _) in enumerate(task.labels)}

    def answers(row: Record) -> tuple[Sequence[str], int]:
        if LABEL not in row:
            return words, -1
        if row[LABEL] not in places:
            known = ", ".join(map(repr, places))
            raise UserError(f"the label is {short(row[LABEL])}: expected one of {known}")
        return words, places[row[LABEL]]

    return answers


def _to_write(task: Task, tokenizer: Any) -> _Answers:
    """Returns what gives a record's only answer: its target, if it has one."""
    if tokenizer.eos_id is None:
        raise UserError("the tokenizer has no EOS token to end a text with: take labels instead")
    target = _check_target(task.target, tokenizer.specials)

    def answers(row: Record) -> tuple[Sequence[str], int]:
        if any(field.name not in row for field in target.fields):
            return (), -1
        text = _filled(target, row)
        if not text:
            raise UserError("the target is empty: give the record a text to write, or remove it")
        return (text,), 0

    return answers


def _filled(target: Template, row: Record) -> str:
    parts = [
        row[piece.name] if isinstance(piece, Field) else getattr(piece, "text", "")
        for piece in target.pieces
    ]
    return "".join(parts).strip()
