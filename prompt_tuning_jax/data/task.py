"""A task: records with named fields, a template, labels or a text target, metrics and splits."""

import functools
import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from prompt_tuning_jax.config.key import Key, all_texts, among, string, switch, whole
from prompt_tuning_jax.data import files, tfds
from prompt_tuning_jax.data.records import LABEL, PLACE, UNLABELLED, Record, Source, shuffled_groups
from prompt_tuning_jax.data.template import Slot, Special, Template, field_names, parse, plain_name
from prompt_tuning_jax.errors import UserError, nearest, short
from prompt_tuning_jax.metrics import LABEL_METRICS, TEXT_DEFAULTS, TEXT_METRICS, TOKENIZERS

_MOST_LABELS = 100  # more distinct values in the data are hardly labels


class Kind(NamedTuple):
    """A kind of task."""

    fields: tuple[str, ...] = ()  # what a template may name, () if the data decides
    labels: tuple[str, ...] = ()  # for a config without labels, () if the data decides
    keys: Mapping[str, Key] = {}  # of the section `task` of a config that other kinds do not have


TOPICS = ("business", "entertainment", "politics", "sport=sports", "tech=technology")
# By the part of `task.name` before a colon: the module here whose `read_source(config)` reads it.
KINDS = {
    "bbc_news": Kind(("text",), TOPICS),
    "files": Kind(keys=files.KEYS),
    "tfds": Kind(keys=tfds.KEYS),
}
NAMES = [f"{name}:NAME" if name == "tfds" else name for name in KINDS]
_SAVED = "; of other data save a file, and give 'files' and config.task.files.train"


def _per_class(split: str) -> Key:
    return whole(0).if_fits(
        f"0 beside config.task.target, which has no classes: write config.task.{split} as"
        f" '{split}[:64]' for a part of the examples",
        lambda value, task: not value or not task["target"],
    )


def _is_name(name: str) -> bool:
    kind, colon, _ = name.partition(":")
    return kind in KINDS and bool(colon) == (kind == "tfds")


KEYS = {
    "name": Key("bbc_news", f"one of {', '.join(map(repr, NAMES))}{_SAVED}", _is_name, NAMES),
    "split_seed": whole(0),
    "train": string("train", least=1),
    "validation": string("validation", least=1),
    "test": string("test", least=1),
    "template": string("{soft}Headline: {text}\nTopic:", least=1),
    # The template as the user's turn of the model's chat template, behind a system text if any.
    "as_chat": switch(False),
    "system": string("").if_fits(
        "'' without config.task.as_chat=true", lambda value, task: not value or task["as_chat"]
    ),
    # 'value' as it stands in the data, or 'value=word' if the model reads another word. A value
    # that has = itself is written with spaces: '<=50K = low'. () takes the values in the data.
    "labels": Key(
        (),
        "at least two texts, none of them empty, as ('first', 'second'), or ()",
        lambda value: len(value) != 1 and all_texts(value),
    ).if_fits("() beside config.task.target", lambda value, task: not (value and task["target"])),
    # Instead of labels: the text to write, a template with fields, such as '{summary}'.
    "target": string(""),
    # () is accuracy for labels, and exact_match, token_f1, bleu and rouge_l for a target.
    "metrics": Key(
        (),
        f"some of {', '.join((*LABEL_METRICS, *TEXT_METRICS))}",
        lambda value: all(item in (*LABEL_METRICS, *TEXT_METRICS) for item in value),
        (*LABEL_METRICS, *TEXT_METRICS),
    ).if_fits(
        f"some of {', '.join(LABEL_METRICS)} for labels, of {', '.join(TEXT_METRICS)} for a target",
        lambda value, task: set(value) <= {*(TEXT_METRICS if task["target"] else LABEL_METRICS)},
    ),
    # What bleu and rouge_l take as words; 'auto' goes by the script of each example's references.
    "metrics_tokenizer": among("auto", TOKENIZERS).if_fits(
        "'auto' without config.task.target, because labels are not divided into words",
        lambda value, task: value == "auto" or bool(task["target"]),
    ),
    # Examples of each label to train on and validate with, by split_seed and draw_seed; 0: all.
    "examples_per_class": _per_class("train"),
    "validation_per_class": _per_class("validation"),
    "draw_seed": whole(0),
    # Tokens in an example without demonstrations; 0: as many as the model has positions.
    "max_length": whole(0),
}


class Task(NamedTuple):
    """What a model is to learn. Nothing is read before `load` is called."""

    name: str
    template: str
    labels: tuple[tuple[str, str], ...]  # (value in the data, word that the model reads)
    metrics: tuple[str, ...]
    fields: tuple[str, ...]  # what a template may name, () if the data decides
    load: Callable[[], Source]
    target: str = ""  # a template of the text to write, instead of labels
    tokenizer: str = "auto"  # of the metrics of texts, see `metrics.text_metrics`
    chat: str | None = None  # the system text of a chat, None for no chat
    continues: bool = False  # whether texts go on behind demonstrations, in virtual tokens: no BOS
    front: tuple[int, ...] = ()  # the tokens of these demonstrations


def make_task(config: Any, labels: Sequence[Sequence[str]] = ()) -> Task:
    """Makes the task that the section `task` of a checked config describes. `labels` are (value,
    word) of each label if they are known, for example from a manifest. Otherwise they come from the
    config, from the kind of task, or from the training split; only the last reads data. Raises a
    UserError for a template without a field of the data, or labels that are empty or repeated."""
    name, module = config.name, config.name.partition(":")[0]
    kind, place = KINDS[module], f"prompt_tuning_jax.data.{module}"
    load = functools.cache(lambda: importlib.import_module(place).read_source(config))
    chat = config.system if config.as_chat else None
    metrics = tuple(config.metrics) or (TEXT_DEFAULTS if config.target else ("accuracy",))
    task = Task(name, config.template, (), metrics, kind.fields, load, config.target, chat=chat)
    check_fields(task.template, task.fields, output_fields(task))
    if not field_names(task.template):
        doubled = re.search(r"\{\{\s*(\w+)\s*\}\}", task.template)
        wanted = f"{{{doubled[1]}}} with single braces" if doubled else "{text}"
        raise UserError(
            f"template {short(task.template, 200)} has no field of the data, so all examples would"
            f" be the same: write {wanted} where the text stands"
        )
    if task.target:
        check_fields(task.target, task.fields)
        parse_target(task.target, ())
        return task._replace(tokenizer=config.metrics_tokenizer)
    words = config.labels or kind.labels
    if labels or words:
        pairs = tuple((value, word) for value, word in labels) or parse_labels(words)
        return task._replace(labels=pairs)
    source = load()
    # A rare label may be in another split of the file. Other kinds' splits may have none.
    names = list(source.splits) if name == "files" else [_parse_split(config.train)[0]]
    pairs = _found_labels(task, names)
    note = f"the labels are those in the data: {', '.join(repr(value) for value, _ in pairs)}"
    source = source._replace(notes=[*source.notes, note])
    return task._replace(labels=pairs, load=lambda: source)


def check_fields(template: str, fields: Sequence[str], outputs: Sequence[str] = ()) -> None:
    """Raises a UserError if a template cannot be parsed or has a field that is not one of `fields`
    (() if these are unknown), or is one of `outputs`, which the model has to find."""
    for name, number in parse(template).fields:
        place = f"template {short(template, 200)}, position {number}"
        if name in outputs:
            raise UserError(f"{place}: {{{name}}} is the answer: expected other fields of the data")
        if fields and name not in fields:
            known = ", ".join(f"{{{each}}}" for each in fields)
            raise UserError(
                f"{place}: unknown field {{{name}}}, expected {known} or {{soft}}"
                f"{nearest(name, [*fields, 'soft'])}"
            )


def template_fields(task: Task, record: Record) -> tuple[str, ...]:
    """Returns the fields that a template may name: the task's, or those of a record of its data."""
    others = (PLACE, UNLABELLED, *output_fields(task))
    return task.fields or tuple(name for name in record if name not in others)


def parse_labels(labels: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Returns (value, word) of each entry 'value' or 'value=word'. An = with spaces divides, or
    else the first one: a value may have = itself, as in '<=50K = low'."""
    pairs: list[tuple[str, str]] = []
    for place, entry in enumerate(labels):
        mark = " = " if " = " in entry else "="
        value, equals, word = (part.strip() for part in entry.partition(mark))
        word = word if equals else value
        if not value or not word or any(value == v or word == w for v, w in pairs):
            raise UserError(
                f"task.labels[{place}] is {entry!r}: expected 'value' or 'value=word', none of them"
                " empty and none that of an earlier label"
            )
        pairs.append((value, word))
    return tuple(pairs)


def select_records(task: Task, split: str, labelled: bool = True) -> list[Record]:
    """Returns the records of `split`: 'train', 'train[:64]', 'test[10:20]' or 'train[:50%]', in the
    same order in every process. Raises a UserError for an unknown split, an invalid or empty slice,
    or a label that the task does not list. Some labels may be missing ('') if not `labelled`."""
    name, start, stop = _parse_split(split)
    rows = _whole_split(task, name)
    count = len(rows)
    first, last = _bound(start, 0, count), _bound(stop, count, count)
    if not 0 <= first < last <= count:
        raise UserError(
            f"split {split!r} of task {task.name} is not a part of its {count} records: expected a"
            f" slice between 0 and {count} that holds at least one"
        )
    _check_labels(task, found := rows[first:last], name, labelled)
    return found


def training_records(task: Task, config: Any, labelled: bool = True) -> list[Record]:
    """Returns the records of `config.train`, or `config.examples_per_class` of each label."""
    return _draw(task, config, "train", "examples_per_class", labelled)


def validation_records(task: Task, config: Any, labelled: bool = True) -> list[Record]:
    """Returns records of `config.validation`, or `config.validation_per_class` of each label."""
    return _draw(task, config, "validation", "validation_per_class", labelled)


def _draw(task: Task, config: Any, split: str, key: str, labelled: bool) -> list[Record]:
    """Returns the records of a split, or so many of each label, which depend on `split_seed`,
    `draw_seed` and their own text alone. A label with too few records is refused."""
    name, most = getattr(config, split), getattr(config, key)
    records = select_records(task, name, labelled or most > 0)
    if not most:
        return records
    # Draws have seeds that no split has; the first draw's is the split's own.
    seed = config.split_seed + (config.draw_seed << 64)
    found: dict[str, list[Record]] = {value: [] for value, _ in task.labels}
    for group in shuffled_groups(records, field_names(task.template), seed):
        for record in group:
            found[record[LABEL]].append(record)
    few = [f"{len(held)} of {value!r}" for value, held in found.items() if len(held) < most]
    if few:
        least = min(map(len, found.values())) or ""  # 0 would be all
        raise UserError(
            f"config.task.{key} is {most} and split {name!r} has"
            f" {' and '.join(few)}: give {least and f'at most {least}, or '}more data"
        )
    return [record for held in found.values() for record in held[:most]]


_BOUND = r"-?(?:\d{1,18}|\d{1,2}%|100%)"
_SPLIT = re.compile(rf"([\w.-]+)(?:\[({_BOUND})?:({_BOUND})?\])?", re.ASCII)  # NAME[START:STOP]


def _parse_split(split: str) -> tuple[str, str | None, str | None]:
    match = _SPLIT.fullmatch(split)
    if not match:
        raise UserError(
            f"{split!r} is not a valid split: expected 'train', 'train[:64]' or 'train[:50%]'"
        )
    return match[1], match[2], match[3]


def _whole_split(task: Task, name: str) -> list[Record]:
    splits = task.load().splits
    if name not in splits:
        raise UserError(
            f"split {name!r} of task {task.name} is unknown, expected one of:"
            f" {', '.join(splits)}{nearest(name, list(splits))}"
        )
    found = splits[name]
    return found() if callable(found) else found


def _bound(text: str | None, default: int, count: int) -> int:
    if not text:
        return default
    number = int(text.rstrip("%"))
    if text.endswith("%"):
        number = round(number * count / 100)
    return number + count if text.startswith("-") else number


def parse_target(target: str, specials: Sequence[str]) -> Template:
    """Parses a task's target; raises a UserError if it has no field, or a slot or special token."""
    parsed = parse(target, specials)
    if not parsed.fields or any(isinstance(piece, Slot | Special) for piece in parsed.pieces):
        raise UserError(
            f"task.target is {short(target, 200)}: expected text with at least one field, such as"
            " '{summary}', without slots and special tokens (the EOS token is added)"
        )
    return parsed


def output_fields(task: Task) -> tuple[str, ...]:
    """Returns the fields that the model has to find: those of the target, or the label."""
    return field_names(task.target) if task.target else (LABEL,)


def _check_labels(task: Task, records: Sequence[Record], split: str, labelled: bool) -> None:
    values = [value for value, _ in task.labels]
    listed = {plain_name(value): value for value in values} | {value: value for value in values}
    for number, record in enumerate(records):
        if labelled and UNLABELLED in record:
            raise UserError(record[UNLABELLED])
        if task.target:
            continue
        label = record[LABEL]
        value = listed.get(label, listed.get(plain_name(label)))
        if label and value is None:
            place = record.get(PLACE, f"record {number} of split {split!r} of task {task.name}")
            spaced = f" (as {label + ' = WORD'!r}, with spaces)" if "=" in label else ""
            raise UserError(
                f"{place} has the label {label!r}, which task.labels does not"
                f" list{spaced or nearest(label, values)}: expected one of: {', '.join(values)}"
            )
        record[LABEL] = value or ""


def _found_labels(task: Task, splits: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Returns the distinct labels of some splits in order, each as its own word."""
    records = [record for name in splits for record in _whole_split(task, name)]
    values = sorted({record[LABEL] for record in records} - {""})
    if not values:
        raise UserError(records[0][UNLABELLED])
    if not 2 <= len(values) <= _MOST_LABELS:
        shown = ", ".join(repr(value[:40]) for value in values[:5])
        raise UserError(
            f"the data of task {task.name} has {len(values)} labels ({shown}"
            f"{', …' if len(values) > 5 else ''}): expected 2 to {_MOST_LABELS}; list them in"
            " task.labels, name the label's column in task.columns, or set task.target for a text"
        )
    return tuple((value, value) for value in values)
