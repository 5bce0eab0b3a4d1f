"""The task kind `files`: local JSON, CSV, TSV or Parquet, with splits by a seed or by file."""

import re
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from prompt_tuning_jax.config.key import Key, string, switch
from prompt_tuning_jax.data import records as making
from prompt_tuning_jax.data.records import LABEL, PLACE, Fields, Record, Source
from prompt_tuning_jax.data.rows import CELLS, TEXT, ending_of, form_of, open_file, read_rows
from prompt_tuning_jax.errors import UserError, short

_NAME = re.compile(r"[^\W\d]\w*([ .-]\w+)?")  # a cell that may be a column's name
_HEADER_HINT = ", or give --config.task.files.header=false if line 1 is a record"


def _part(split: str) -> Key:
    """Returns the key for the part of the training file that is a split."""
    return Key(
        0.1,
        "a share above 0 and below 1, or a whole number of records",
        lambda value: 0 < value < 1 or (value >= 1 and value.is_integer()),
    ).if_fits(
        f"0.1, the default, because config.task.files.{split} is used whole",
        lambda value, task: value == 0.1 or not task[f"files.{split}"],
    )


KEYS = {
    "columns": making.COLUMNS,
    "files.train": string("", least=1)._replace(expected="a .json, .csv, .tsv or .parquet file"),
    # A split without a file is a part of the training file.
    "files.validation": string(""),
    "files.test": string(""),
    "files.validation_part": _part("validation"),
    "files.test_part": _part("test"),
    # '' goes by the file's ending. If it is a tab, quotes count only around a whole cell.
    "files.delimiter": Key(
        "",
        "one character, such as ';' or '\\t', or ''",
        lambda value: value in ("", "\\t") or (len(value) == 1 and value not in '"\r\n'),
    ),
    # Whether the first line of a table names the columns.
    "files.header": switch(True),
}


def read_source(config: Any) -> Source:
    """Reads the splits 'train', 'validation' and 'test' that the section `task` of a config names.
    Without a file, validation or test is a part of the training file, see `take_parts`."""
    fields, files = making.task_fields(config), config.files
    paths = {"train": files.train, "validation": files.validation, "test": files.test}
    splits, notes = {}, []
    if unread := fields.columns.keys() - {*fields.inputs, *fields.outputs}:
        notes.append(f"config.task.columns: nothing reads the field {', '.join(sorted(unread))}")
    for name, path in paths.items():
        if path:
            splits[name], said = read_records(path, fields, files.delimiter, files.header)
            notes += said
    # The test split comes first: it does not depend on the size of the validation split.
    parts = {"test": files.test_part, "validation": files.validation_part}
    missing = {name: part for name, part in parts.items() if name not in splits}
    if missing:
        splits |= take_parts(splits["train"], missing, fields, config.split_seed, files.train)
        sizes = ", ".join(f"{len(splits[name])} for {name}" for name in ("train", *missing))
        notes.append(f"{files.train} is split: {sizes} (seed {config.split_seed})")
    return Source(splits, notes if fields.target else [*notes, *_rare_labels(splits)])


def read_records(
    path: str, fields: Fields, delimiter: str = "", header: bool = True
) -> tuple[list[Record], list[str]]:
    """Returns the records of a file, and notes of what is not read as it is written."""
    form = form_of(path, delimiter, header)
    changes: Counter[str] = Counter()
    with open_file(path) as stream:
        if form.kind == TEXT:
            raise UserError(
                f"{path} ends in {ending_of(path)!r}: expected .json, .csv, .tsv or .parquet, or"
                " set config.task.files.delimiter for cells in a file with another ending"
            )
        rows = list(read_rows(stream, path, form, changes))
    cells = form.kind == CELLS
    hint = making.COLUMNS_HINT + _HEADER_HINT * (cells and header)
    records = list(making.make_records(rows, fields, numbered=cells, hint=hint))
    if not records:
        raise UserError(f"{path} holds no record: expected a line for each")
    notes = [f"{path}: {count} {what}" for what, count in changes.items() if count]
    if not cells and not header:
        notes.append(f"{path}: config.task.files.header is ignored, as only tables have a header")
    if cells and not header and _header_as_record(records, fields):
        notes.append(
            f"warning: {records[0][PLACE]} is read as a record and looks like the names of columns:"
            " if it holds them, leave config.task.files.header at true"
        )
    names = rows[0].values
    # A column without a name can only be given by its number.
    numbers = {str(number) for number, name in enumerate(names, 1) if name} - {*names}
    known = {*names, *numbers}
    chosen = {next((c for c in each if c in known), "") for each in fields.columns.values()}
    if cells and header and numbers & chosen:
        notes.append(
            f"warning: {path}: columns are given by number, and the first line is taken as their"
            " names: if it is a record, give --config.task.files.header=false"
        )
    return records, notes


def _header_as_record(records: list[Record], fields: Fields) -> bool:
    """Whether the first record looks like the names of columns, and no other has its label."""
    first, read = records[0], (*fields.inputs, *fields.outputs)
    return (
        not fields.target
        and len(records) > 2
        and all(_NAME.fullmatch(first[field]) for field in read)
        and all(record[LABEL] != first[LABEL] for record in records[1:])
    )


def _rare_labels(splits: Mapping[str, list[Record]]) -> list[str]:
    """Says which labels are scored without training, and which have one record to train on."""
    trained = Counter(record[LABEL] for record in splits["train"])
    if "" in trained:  # for a teacher
        return []
    scored = {record[LABEL] for name in ("validation", "test") for record in splits[name]} - {""}
    found = {
        "warning: labels that are scored without a record to train on: ": scored - trained.keys(),
        "labels with one record to train on: ": {each for each in trained if trained[each] == 1},
    }
    return [what + short(sorted(labels), 200)[1:-1] for what, labels in found.items() if labels]


def take_parts(
    records: list[Record], parts: Mapping[str, float], fields: Fields, seed: int, path: str
) -> dict[str, list[Record]]:
    """Splits the training records into parts of about the sizes asked for: a share below 1, or a
    number of records; the rest is the split 'train'. Records with the same input stay together, in
    an order by the seed and their inputs alone. Of each label that several records have, the last
    input stays in training, unless that leaves a part empty."""

    def cut(kept: Collection[int]) -> dict[str, list[Record]]:
        made: dict[str, list[Record]] = {name: [] for name in (*sizes, "train")}
        for number, group in enumerate(groups):
            taker = next((name for name, size in sizes.items() if len(made[name]) < size), "train")
            made["train" if number in kept else taker] += group
        return made

    sizes = {
        name: max(round(part * len(records)), 1) if part < 1 else int(part)
        for name, part in parts.items()
    }
    groups = making.shuffled_groups(records, fields.inputs, seed)
    labels = [[record[LABEL] for record in group if not fields.target] for group in groups]
    counts = Counter(label for group in labels for label in group)
    last = {each: n for n, group in enumerate(labels) for each in group if counts[each] > 1}
    made = cut(set(last.values()))
    made = made if all(made.values()) else cut(())
    if not made["train"] or sum(sizes.values()) >= len(records):
        taken = " and ".join(f"{max(sizes[name], len(made[name]))} for {name}" for name in parts)
        keys = " and ".join(f"config.task.files.{name}_part" for name in parts)
        raise UserError(
            f"{path} has {len(records)} records, which leaves none to train on after {taken}: give"
            f" {keys} a smaller size, or files of their own"
        )
    return made
