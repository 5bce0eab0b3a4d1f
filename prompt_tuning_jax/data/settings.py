"""The section `task` of a config: what its values mean together, before any data is read.

Imports nothing that takes time, so that a fault is reported at once.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from prompt_tuning_jax.errors import nearest, short

LABEL_METRICS = ("accuracy", "class_accuracy", "macro_f1", "matthews")
TEXT_METRICS = ("exact_match", "token_f1", "bleu", "rouge_l")
TFDS = "tfds:"


def column(entry: str) -> tuple[str, str] | None:
    """Returns (field, column) of an entry 'field=column' of `task.columns`, None if it is none."""
    field, equals, name = (part.strip() for part in entry.partition("="))
    return (field, name) if equals and name and field.isidentifier() else None


def misfits(values: Mapping[str, Any], keys: Mapping[str, Any]) -> list[str]:
    """Returns the faults of values that are right alone and wrong together, a sentence each.

    Args:
        values: of all keys of a config, by their dotted names.
        keys: `config.KEYS`, whose defaults count.
    """
    changed = [name for name, key in keys.items() if values[name] != key.default]
    return [
        *_unread(values["task.name"], changed, values),
        *_labels_or_target(values),
        *_metrics(values["task.metrics"], bool(values["task.target"])),
    ]


def _unread(task: str, changed: Sequence[str], values: Mapping[str, Any]) -> list[str]:
    """Settings that this kind of task would ignore, and files that are not named."""
    is_files, is_tfds = task == "files", task.startswith(TFDS)
    faults = []
    for name in changed:
        if name.startswith("task.files.") and not is_files:
            reader = "files"
        elif name == "task.data_dir" and not is_tfds:
            reader = f"{TFDS}NAME"
        elif name == "task.columns" and not (is_files or is_tfds):
            reader = f"files or {TFDS}NAME"
        else:
            continue
        faults.append(
            f"config.{name} is {short(values[name], 200)} and config.task.name is"
            f" {short(task, 200)}, which does not read it: write config.task.name={reader}"
        )
    faults += [
        f"config.task.files.{split}_part is {values[f'task.files.{split}_part']} and"
        f" config.task.files.{split} is {short(values[f'task.files.{split}'], 200)}, which is taken"
        " whole: leave one of them out"
        for split in ("validation", "test")
        if f"task.files.{split}_part" in changed and is_files and values[f"task.files.{split}"]
    ]
    if is_files and not values["task.files.train"]:
        faults.append(
            "config.task.files.train is '' and config.task.name is 'files': give the path of a"
            " .jsonl, .csv or .tsv file"
        )
    return faults


def _labels_or_target(values: Mapping[str, Any]) -> list[str]:
    target, faults = values["task.target"], []
    if target and values["task.labels"]:
        faults.append(
            f"config.task.target is {short(target, 200)} and config.task.labels is"
            f" {short(values['task.labels'], 200)}: leave one of them empty"
        )
    if target and values["task.examples_per_class"]:
        faults.append(
            f"config.task.examples_per_class is {values['task.examples_per_class']} and"
            f" config.task.target is {short(target, 200)}, which has no classes: write"
            " config.task.train as 'train[:64]' for a part of the examples"
        )
    return faults


def _metrics(names: Sequence[str], has_target: bool) -> list[str]:
    known, others = (TEXT_METRICS, LABEL_METRICS) if has_target else (LABEL_METRICS, TEXT_METRICS)
    kind = "a text target" if has_target else "labels"
    return [
        f"config.task.metrics has {short(name, 200)},"
        f"{f' which a task with {kind} cannot have:' if name in others else ''}"
        f" expected some of {', '.join(known)}{nearest(name, known)}"
        for name in names
        if name not in known
    ]
