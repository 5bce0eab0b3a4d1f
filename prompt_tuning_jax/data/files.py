"""The task kind `files`: local JSON lines, CSV or TSV, split by a seed where a file is missing."""

from collections.abc import Mapping, Sequence
from typing import Any

from prompt_tuning_jax.config.key import Key, string, switch
from prompt_tuning_jax.data.records import (
    COLUMNS,
    COLUMNS_HINT,
    Fields,
    Record,
    Source,
    make_records,
    shuffled_groups,
    task_fields,
)
from prompt_tuning_jax.data.rows import CELLS, TEXT, ending_of, form_of, open_file, read_rows
from prompt_tuning_jax.errors import UserError

_HEADER_HINT = ", or give --config.task.files.header=false if line 1 is a record"


def _part(split: str) -> Key:
    """Returns the key for the part of the training file that is a split."""
    return Key(
        0.1,
        "a share above 0 and below 1, or a whole number of records",
        lambda value: 0 < value < 1 or (value >= 1 and value.is_integer()),
        beside=f"0.1, the default, because config.task.files.{split} is taken whole",
        fits=lambda value, task: value == 0.1 or not task[f"files.{split}"],
    )


KEYS = {
    "columns": COLUMNS,
    "files.train": string("", least=1)._replace(expected="the path of a .jsonl, .csv or .tsv file"),
    # A split without a file is a part of the training file.
    "files.validation": string(""),
    "files.test": string(""),
    "files.validation_part": _part("validation"),
    "files.test_part": _part("test"),
    # '' goes by the file's ending. Quotes have a meaning unless the delimiter is a tab.
    "files.delimiter": Key(
        "",
        "one character, such as ';' or '\\t', or ''",
        lambda value: value in ("", "\\t") or (len(value) == 1 and value not in '"\r\n'),
    ),
    # Whether the first line names the columns.
    "files.header": switch(True),
}


def read_source(config: Any) -> Source:
    """Reads the files of the section `task` of a config.

    If validation or test has no file, it is a part of the training file. Records with the same
    input stay together, and the choice depends on `split_seed` and their inputs alone.

    Returns:
        The splits 'train', 'validation' and 'test'.

    Raises:
        UserError: a file cannot be read; names the file, and the line if there is one.
    """
    fields, files = task_fields(config), config.files
    paths = {"train": files.train, "validation": files.validation, "test": files.test}
    splits, notes = {}, []
    for name, path in paths.items():
        if path:
            splits[name], blank = read_records(path, fields, files.delimiter, files.header)
            if blank:
                notes.append(f"{path}: {blank} blank lines were skipped")
    # The test split comes first: it does not depend on the size of the validation split.
    parts = {"test": files.test_part, "validation": files.validation_part}
    missing = {name: part for name, part in parts.items() if name not in splits}
    if missing:
        splits |= take_parts(
            splits["train"], missing, fields.inputs, config.split_seed, files.train
        )
        sizes = ", ".join(f"{len(splits[name])} for {name}" for name in ("train", *missing))
        notes.append(f"{files.train} is split: {sizes} (seed {config.split_seed})")
    return Source(splits, notes)


def read_records(
    path: str, fields: Fields, delimiter: str = "", header: bool = True
) -> tuple[list[Record], int]:
    """Returns the records of a file and the number of its blank lines; see `rows.form_of`.

    Raises:
        UserError: the file or one of its lines cannot be read; names the line.
    """
    form = form_of(path, delimiter, header)
    if form.kind == TEXT:
        raise UserError(
            f"{path} ends in {ending_of(path)!r}: expected .jsonl, .csv or .tsv, or set"
            " config.task.files.delimiter for cells in a file with another ending"
        )
    with open_file(path) as stream:
        rows = list(read_rows(stream, path, form))
    cells = form.kind == CELLS
    hint = COLUMNS_HINT + _HEADER_HINT * (cells and header)
    records = list(make_records(rows, fields, numbered=cells, hint=hint))
    if not records:
        raise UserError(f"{path} holds no record: expected a line for each")
    return records, sum(row.values is None for row in rows)


def take_parts(
    records: list[Record],
    parts: Mapping[str, float],
    inputs: Sequence[str],
    seed: int,
    path: str,
) -> dict[str, list[Record]]:
    """Splits the training records into parts of about the sizes asked for.

    Args:
        records: of the file `path`.
        parts: the size of each new split, as a share below 1 or a number of records.
        inputs: fields of the input; records with equal ones go to the same split.
        seed: decides together with the inputs.

    Returns:
        The new splits, and 'train' with the rest.

    Raises:
        UserError: nothing is left for training.
    """
    groups = iter(shuffled_groups(records, inputs, seed))
    made: dict[str, list[Record]] = {}
    for name, part in parts.items():
        size = max(round(part * len(records)), 1) if part < 1 else int(part)
        made[name] = []
        while len(made[name]) < size and (group := next(groups, None)):
            made[name] += group
    made["train"] = [record for group in groups for record in group]
    if not made["train"]:
        taken = " and ".join(f"{len(made[name])} for {name}" for name in parts)
        keys = " and ".join(f"config.task.files.{name}_part" for name in parts)
        raise UserError(
            f"{path} has {len(records)} records, which leaves none to train on after {taken}: give"
            f" {keys} a smaller size, or files of their own"
        )
    return made
