"""Local files as a task: JSON lines, CSV and TSV, whole or split by a seed."""

import csv
import io
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from prompt_tuning_jax.data.records import (
    LONGEST,
    Record,
    Source,
    Wanted,
    ranked,
    records,
    sources,
    wanted,
)
from prompt_tuning_jax.errors import UserError, nearest, short

JSON_ENDINGS = (".jsonl", ".ndjson", ".json")
DELIMITERS = {".csv": ",", ".tsv": "\t"}
_LONGEST_ROW = 1 << 22  # characters; where a quote is not closed, cells might go on to the end


class Rows(NamedTuple):
    """The records of a file, and how many of its lines were blank."""

    records: list[Record]
    blank: int


def source(config: Any) -> Source:
    """Reads the files of the section `task` of a config.

    What is not given of validation and test is taken from the training file: records with the same
    input stay together, and which are taken depends on `split_seed` and their inputs alone.

    Returns:
        The splits 'train', 'validation' and 'test'.

    Raises:
        UserError: names the file, and the line if it is one's fault.
    """
    want, files = wanted(config), config.files
    paths = {"train": files.train, "validation": files.validation, "test": files.test}
    given = {name: path for name, path in paths.items() if path}
    held = {name: read(path, want, files.delimiter, files.header) for name, path in given.items()}
    splits = {name: rows.records for name, rows in held.items()}
    notes = [
        f"{given[name]}: {rows.blank} blank lines were skipped"
        for name, rows in held.items()
        if rows.blank
    ]
    # The test split first: it stays the same whatever the size of the validation split.
    parts = {"test": files.test_part, "validation": files.validation_part}
    missing = {name: part for name, part in parts.items() if name not in given}
    splits |= split(splits["train"], missing, want.inputs, config.split_seed, files.train)
    if missing:
        sizes = ", ".join(f"{len(splits[name])} for {name}" for name in ("train", *missing))
        notes.append(f"{files.train} is split: {sizes} (seed {config.split_seed})")
    return Source(splits, notes)


def read(path: str, want: Wanted, delimiter: str = "", header: bool = True) -> Rows:
    """Reads the records of a file.

    Args:
        path: ends in .jsonl, .csv or .tsv; in anything where there is a delimiter.
        want: from `records.wanted`.
        delimiter: one character between cells; '' goes by the path.
        header: whether a first line of CSV or TSV names the columns, which else are '1', '2', ….

    Raises:
        UserError: names the file, and the line if it is one's fault.
    """
    delimiter = delimiter_of(path, delimiter)
    text = _text(path)
    lines = io.StringIO(text, newline="")
    rows = cells_of(lines, path, delimiter, header) if delimiter else _objects(text, path)
    hint = ", or give --config.task.files.header=false if line 1 is a record"
    hint = hint if delimiter and header else ""
    found: list[Record] = []
    columns: Any = None
    fields: dict[str, str] = {}
    blank = 0
    for line, row in rows:
        place = f"{path}, line {line}"
        if row is None:
            blank += 1
            continue
        if columns != row.keys():
            columns = row.keys()
            fields = sources(list(row), want, f"{path}, line 1" if delimiter else place, hint)
        found += records(row, fields, want, place)
    if not found:
        raise UserError(f"{path} holds no record: expected a line for each")
    return Rows(found, blank)


def split(
    rows: list[Record], parts: Mapping[str, float], fields: Sequence[str], seed: int, path: str
) -> dict[str, list[Record]]:
    """Takes parts of the training records away, of about the sizes that are asked for.

    Args:
        rows: all records.
        parts: a share below 1, or a number, of the records for each split that is to be made.
        fields: the input, whose equals stay on one side.
        seed: decides with the inputs about the order.
        path: for errors.

    Returns:
        Each part, and 'train' with what is left; nothing without parts.

    Raises:
        UserError: too few distinct inputs.
    """
    if not parts:
        return {}
    groups = iter(ranked(rows, fields, seed))
    made: dict[str, list[Record]] = {}
    for name, part in parts.items():
        size = max(round(part * len(rows)), 1) if part < 1 else int(part)
        made[name] = []
        while len(made[name]) < size and (group := next(groups, None)):
            made[name] += group
    made["train"] = [row for group in groups for row in group]
    if not made["train"]:
        raise UserError(
            f"{path} has {len(rows)} records, which leaves none to train on after"
            f" {' and '.join(f'{len(made[name])} for {name}' for name in parts)}: give"
            f" {' and '.join(f'config.task.files.{name}_part' for name in parts)} a smaller size,"
            " or files of their own"
        )
    return made


def delimiter_of(path: str, delimiter: str = "") -> str:
    """Returns the character between a file's cells, '' for JSON lines.

    Raises:
        UserError: `delimiter` is none, or is '' and the path's ending says nothing.
    """
    if delimiter:
        delimiter = {"\\t": "\t"}.get(delimiter, delimiter)
        if len(delimiter) != 1 or delimiter in '"\r\n':
            raise UserError(
                f"config.task.files.delimiter is {delimiter!r}: expected one character, as ';' or"
                " '\\t'"
            )
        return delimiter
    ending = os.path.splitext(path)[1].lower()
    if ending in JSON_ENDINGS:
        return ""
    if ending not in DELIMITERS:
        raise UserError(
            f"{path} ends in {ending!r}: expected .jsonl, .csv or .tsv, or set"
            " config.task.files.delimiter for a text of cells"
        )
    return DELIMITERS[ending]


def check_plain(path: str, what: str) -> None:
    """Raises a UserError for a pipe, which would be waited for, or a device, which has no end."""
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        raise UserError(
            f"{what} {path!r} is a pipe or a device: write what it gives to a file, and give that"
        )


def _text(path: str) -> str:
    """The text of a file, without a byte order mark."""
    check_plain(path, "data file")
    try:
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError as error:
        folder = os.path.dirname(path)
        beside = os.listdir(folder or ".") if os.path.isdir(folder or ".") else []
        hint = nearest(path, [os.path.join(folder, name) for name in beside])
        raise UserError(f"data file {path!r} does not exist{hint}") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(f"data file {path!r} cannot be read: {reason}") from error
    if not data:
        raise UserError(f"{path} is empty: expected a line for each record")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # The bytes of the line alone: a mark in front does not count.
        line, start = data.count(b"\n", 0, error.start) + 1, data.rfind(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}, line {line}: not UTF-8 at byte {error.start - start + 1}: save the file as"
            " UTF-8"
        ) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise UserError(f"{path}, line {line}: a NUL byte, which no text has: save the file again")
    return text


def _objects(text: str, path: str) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Yields the number and the object of each line of JSON, None for a blank one."""
    # Other line separators than \n may stand inside of a JSON text.
    for number, line in enumerate(text.removesuffix("\n").split("\n"), 1):
        yield number, (object_of(line, f"{path}, line {number}") if line.strip() else None)


def object_of(line: str, place: str) -> dict[str, Any]:
    """Returns the JSON object that a line holds.

    Raises:
        UserError: it holds none, or a name twice; begins with `place`.
    """

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(items)
        if len(made) < len(items):
            twice = next(name for name in made if sum(name == other for other, _ in items) > 1)
            raise UserError(f"{place}: the name {twice!r} is there twice")
        return made

    try:
        value = json.loads(line, object_pairs_hook=pairs)
    except (ValueError, RecursionError) as error:
        deep = isinstance(error, RecursionError)
        reason = "it is nested too deeply" if deep else getattr(error, "msg", error)
        raise UserError(f"{place}: no JSON object ({reason}): expected fields by name") from error
    if not isinstance(value, dict):
        raise UserError(
            f'{place}: a JSON {type(value).__name__}, expected an object, as {{"text": …}}, on'
            " each line"
        )
    return value


def cells_of(
    lines: Iterable[str], path: str, delimiter: str, header: bool
) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Yields the first line and the cells by column of each row, None for a blank one.

    Args:
        lines: with their ends, see `read` for the rest.
        path: for errors.

    Raises:
        UserError: names the file and the line.
    """
    columns: list[str] = []
    line, taken = 1, 0

    def counted() -> Iterator[str]:
        nonlocal taken
        for text in lines:
            taken += len(text)
            if taken > _LONGEST_ROW:
                raise UserError(
                    f"{path}, line {line}: a row of more than {_LONGEST_ROW:,} characters: shorten"
                    " it, or close its quote"
                )
            yield text

    rows = csv.reader(
        counted(),
        delimiter=delimiter,
        quoting=csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL,
        strict=True,
    )
    while True:
        try:
            cells = next(rows, None)
        except csv.Error as error:
            raise UserError(f"{path}, line {line}: {_csv_fault(error)}") from error
        if cells is None:
            return
        if not cells:
            yield line, None
        elif not columns and header:
            columns = _columns(cells, delimiter, f"{path}, line {line}")
        else:
            columns = columns or [str(number) for number in range(1, len(cells) + 1)]
            if len(cells) != len(columns):
                raise UserError(
                    f"{path}, line {line}: {len(cells)} cells, expected {len(columns)} as in the"
                    f" first line: {_ragged(delimiter)}"
                )
            yield line, dict(zip(columns, cells, strict=True))
        line, taken = rows.line_num + 1, 0


def _columns(cells: list[str], delimiter: str, place: str) -> list[str]:
    columns = [cell.strip() for cell in cells]
    twice = next((name for name, count in Counter(columns).items() if count > 1), None)
    if twice is not None:
        raise UserError(f"{place}: two columns have the name {short(twice)}: rename one of them")
    if len(columns) == 1 and any(other in columns[0] for other in ",;\t|"):
        raise UserError(
            f"{place}: the only column is {short(columns[0])}: expected {delimiter!r} between"
            " cells, as the file's ending or config.task.files.delimiter says"
        )
    return columns


def _csv_fault(error: csv.Error) -> str:
    fault = str(error)
    if "field larger" in fault:
        return f"a cell of more than {LONGEST:,} characters: shorten it, or close its quote"
    if "end of data" in fault:
        return "a quote that is opened here is not closed: double a quote inside of quotes"
    return f"{fault}: put a cell that holds quotes in quotes, and double them"


def _ragged(delimiter: str) -> str:
    if delimiter == "\t":
        return "no cell of a TSV can hold a tab or a new line: write such data as CSV"
    return f"put a cell that holds {delimiter!r} or a new line in quotes"
