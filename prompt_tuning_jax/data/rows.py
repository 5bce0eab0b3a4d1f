"""Rows of a file or a stream: lines of text, JSON objects, or values under column names.

Training files, prediction input and written prompts are all read here. A further format is one
function from a binary stream to rows, and one line in `_READERS`.
"""

import codecs
import csv
import io
import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from prompt_tuning_jax.errors import UserError, nearest_file, short

TEXT, JSON, CELLS, PARQUET = "text", "json", "cells", "parquet"
LINE = "line"  # the column of a row of text
BLANK = "blank lines were skipped"
LONGEST_LINE = 1 << 25  # bytes; a line without an end would fill the memory
LONGEST_ARRAY = 1 << 28  # characters; a JSON array is in the memory as a whole
# What libraries and their parsers raise for a damaged file.
DAMAGED = (AttributeError, ImportError, LookupError, OSError, RuntimeError, TypeError, ValueError)
_JSON_ENDINGS = (".jsonl", ".ndjson", ".json")
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_QUOTED = re.compile(r'"((?:[^"]|"")*)"')
_SEPARATOR = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)  # Excel's first line


class Form(NamedTuple):
    """How rows are written."""

    # TEXT (a text a line), JSON (an object a line, or an array of them), CELLS or PARQUET.
    kind: str = TEXT
    # What separates cells. If that is a tab, quotes count only around a whole cell.
    delimiter: str = ""
    # Whether the first line of cells names the columns, which are '1', '2', … otherwise.
    header: bool = True


class Row(NamedTuple):
    """One row: where it is ('a.csv, line 7') and its values by column."""

    place: str
    values: dict[str, Any]


def ending_of(path: str) -> str:
    """Returns the ending of a file's name in lower case, such as '.csv'."""
    return os.path.splitext(path)[1].lower()


def form_of(path: str, delimiter: str = "", header: bool = True) -> Form:
    """Returns the form of a file's rows: cells if a delimiter is given, else by its ending."""
    delimiter = {"\\t": "\t"}.get(delimiter, delimiter)
    ending = ending_of(path)
    if ending == ".parquet":
        return Form(PARQUET)
    if ending in _DELIMITERS or (delimiter and ending not in _JSON_ENDINGS):
        return Form(CELLS, delimiter or _DELIMITERS[ending], header)
    return Form(JSON if ending in _JSON_ENDINGS else TEXT)


def open_file(path: str, what: str = "data file") -> BinaryIO:
    """Opens a regular file; `~` is the home folder, and `what` names the file in errors. A pipe
    would be waited for, and a device may have no end."""
    if "://" in path:
        raise UserError(
            f"{what} {path!r} is a URL: download it, as with `curl -LO URL`, and give the file"
        )
    path = os.path.expanduser(path)
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            raise UserError(f"{what} {path!r} is not a regular file: give the path of one")
        return open(path, "rb")
    except FileNotFoundError as error:
        hub = "" if ending_of(path) else ": save a data set of a hub as a file first"
        raise UserError(f"{what} {path!r} does not exist{nearest_file(path) or hub}") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{what} {path!r} cannot be read: {reason}") from error


def read_lines(stream: BinaryIO, name: str) -> Iterator[tuple[str, str]]:
    """Yields the place and the text of each line, with its end."""
    for number, line in enumerate(iter(lambda: stream.readline(LONGEST_LINE), b""), 1):
        place = f"{name}, line {number}"
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if len(line) == LONGEST_LINE:
            hint = "end each record with a new line; jq -c '.[]' does so for an array"
            raise UserError(f"{place} has over {LONGEST_LINE:,} bytes: {hint}")
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            raise UserError(
                f"{place}: not UTF-8 at byte {error.start + 1}: save the file as UTF-8"
            ) from error
        if "\0" in text:
            raise UserError(f"{place}: a NUL byte, which no text has: save the file as UTF-8")
        yield place, text


def read_rows(
    stream: BinaryIO, name: str, form: Form, changes: Counter[str] | None = None
) -> Iterator[Row]:
    """Yields the rows of a stream as they come; only a JSON array is read whole. `name` is for
    errors, and `changes` counts, in words, what is not read as it is written."""
    return _READERS[form.kind](stream, name, form, Counter() if changes is None else changes)


def is_object(text: str) -> bool:
    """Whether a text is a JSON object or begins an array, and so is hardly meant as text."""
    if re.match(r"\s*\[\s*(\{|$)", text):
        return True
    try:
        return text.lstrip().startswith("{") and isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _read_texts(stream: BinaryIO, name: str, form: Form, changes: Counter[str]) -> Iterator[Row]:
    for place, line in read_lines(stream, name):
        yield Row(place, {LINE: line.rstrip("\r\n")})


def _read_objects(stream: BinaryIO, name: str, form: Form, changes: Counter[str]) -> Iterator[Row]:
    lines, begun = read_lines(stream, name), False
    for place, text in lines:
        if begun or not text.lstrip().startswith("["):
            if text.strip():
                begun = True
                yield _object_row(_parse(text, place), place)
            else:
                changes[BLANK] += 1
            continue
        for _, line in lines:
            text += line
            if len(text) > LONGEST_ARRAY:
                raise UserError(
                    f"{name} is a JSON array of over {LONGEST_ARRAY:,} characters: write an object"
                    " on each line instead, for example with jq -c '.[]'"
                )
        for number, item in enumerate(_parse(text, place), 1):
            yield _object_row(item, f"{name}, item {number}")


def _parse(text: str, place: str) -> Any:
    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        _refuse_repeated([name for name, _ in items], place)
        return dict(items)

    try:
        return json.loads(text, object_pairs_hook=pairs)
    except (ValueError, RecursionError) as error:
        deep = isinstance(error, RecursionError)
        reason = "it is nested too deeply" if deep else getattr(error, "msg", error)
        if "\n" in text.strip() and isinstance(error, json.JSONDecodeError):
            reason = f"{reason} {error.lineno - 1} lines below"
        raise UserError(
            f"{place}: not a JSON object ({reason}): expected an object on each line, or an array"
            " of objects"
        ) from error


def _object_row(value: Any, place: str) -> Row:
    if not isinstance(value, dict):
        kind = type(value).__name__
        raise UserError(f'{place}: a JSON {kind}, expected an object such as {{"text": …}}')
    return Row(place, value)


def _read_cells(stream: BinaryIO, name: str, form: Form, changes: Counter[str]) -> Iterator[Row]:
    # Lines may also end in \r alone.
    lines = (part for _, line in read_lines(stream, name) for part in io.StringIO(line, newline=""))
    first = next(lines, "")
    named = _SEPARATOR.fullmatch(first)
    delimiter = named[1] if named else form.delimiter
    rows = csv.reader(
        lines if named or not first else itertools.chain([first], lines),
        delimiter=delimiter,
        quoting=csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL,
        strict=True,
    )
    columns: list[str] = []
    while True:
        place = f"{name}, line {rows.line_num + 1 + bool(named)}"
        try:
            cells = next(rows, None)
        except csv.Error as error:
            raise UserError(f"{place}: {_csv_fault(error)}") from error
        if cells is None:
            return
        if delimiter == "\t":
            cells = [_without_quotes(cell, changes) for cell in cells]
        if not cells:
            changes[BLANK] += 1
        elif form.header and not columns:
            columns = [cell.strip() or str(number) for number, cell in enumerate(cells, 1)]
            _refuse_repeated(columns, place)
        else:
            columns = columns or [str(number) for number in range(1, len(cells) + 1)]
            if len(cells) != len(columns):
                advice = f"put a cell that holds {delimiter!r} or a new line in quotes"
                if delimiter == "\t":
                    advice = "no cell of a TSV can hold a tab or a new line: write such data as CSV"
                raise UserError(
                    f"{place}: {len(cells)} cells, expected {len(columns)} as in the first line:"
                    f" {advice}"
                )
            yield Row(place, dict(zip(columns, cells, strict=True)))


def _without_quotes(cell: str, changes: Counter[str]) -> str:
    """Returns a cell between tabs as csv reads it, if it begins and ends with quotes."""
    quoted = _QUOTED.fullmatch(cell)
    if not quoted:
        return cell
    changes["cells begin and end with quotes, which were removed"] += 1
    return quoted[1].replace('""', '"')


def _read_parquet(stream: BinaryIO, name: str, form: Form, changes: Counter[str]) -> Iterator[Row]:
    try:
        from pyarrow import parquet

        batches = parquet.ParquetFile(stream).iter_batches()
        rows = (row for batch in batches for row in batch.to_pylist())
        for number, row in enumerate(rows, 1):
            yield Row(f"{name}, record {number}", row)
    except DAMAGED as error:
        raise UserError(
            f"{name} cannot be read by pyarrow ({short(str(error), 100)}): write it as JSON lines,"
            " with pandas.read_parquet(FILE).to_json('data.jsonl', orient='records', lines=True)"
        ) from error


def _refuse_repeated(names: list[str], place: str) -> None:
    repeated = next((name for name, count in Counter(names).items() if count > 1), None)
    if repeated is not None:
        raise UserError(f"{place}: two columns have the name {short(repeated)}: rename one of them")


def _csv_fault(error: csv.Error) -> str:
    if "field larger" in str(error):
        longest = csv.field_size_limit()
        return f"a cell of more than {longest:,} characters: shorten it, or close its quote"
    if "end of data" in str(error):
        return "a quote that opens here is not closed: double a quote inside of quotes"
    return f"{error}: double a quote inside of quotes, or set config.task.files.delimiter"


_READERS = {TEXT: _read_texts, JSON: _read_objects, CELLS: _read_cells, PARQUET: _read_parquet}
