"""Rows of a file or a stream: lines of text, JSON objects, or cells under column names.

Training files, prediction input and written prompts are all read here. A further format is one
function from a binary stream to rows, and one line in `_READERS`.
"""

import codecs
import csv
import io
import json
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from prompt_tuning_jax.errors import UserError, nearest_file, short

TEXT, JSON, CELLS = "text", "json", "cells"
LINE = "line"  # the column of a row of text
LONGEST_LINE = 1 << 25  # bytes; a line without an end would fill the memory
_JSON_ENDINGS = (".jsonl", ".ndjson", ".json")
_DELIMITERS = {".csv": ",", ".tsv": "\t"}


class Form(NamedTuple):
    """How rows are written.

    Attributes:
        kind: TEXT (a text on each line), JSON (an object on each line) or CELLS.
        delimiter: between cells; quotes have a meaning unless it is a tab.
        header: whether the first line of cells names the columns, which are '1', '2', … otherwise.
    """

    kind: str = TEXT
    delimiter: str = ""
    header: bool = True


class Row(NamedTuple):
    """One row: where it is ('a.csv, line 7') and its values by column, None for a blank line."""

    place: str
    values: dict[str, Any] | None


def ending_of(path: str) -> str:
    """Returns the ending of a file's name in lower case, such as '.csv'."""
    return os.path.splitext(path)[1].lower()


def form_of(path: str, delimiter: str = "", header: bool = True) -> Form:
    """Returns the form of a file's rows: cells if a delimiter is given, else by its ending."""
    delimiter = {"\\t": "\t"}.get(delimiter, delimiter)
    ending = ending_of(path)
    if delimiter or ending in _DELIMITERS:
        return Form(CELLS, delimiter or _DELIMITERS[ending], header)
    return Form(JSON if ending in _JSON_ENDINGS else TEXT)


def open_file(path: str, what: str = "data file") -> BinaryIO:
    """Opens a regular file; `what` names it in errors. A pipe would be waited for, and a device may
    have no end.

    Raises:
        UserError: the file does not exist, is not a regular file, or cannot be read.
    """
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            raise UserError(f"{what} {path!r} is not a regular file: give the path of one")
        return open(path, "rb")
    except FileNotFoundError as error:
        raise UserError(f"{what} {path!r} does not exist{nearest_file(path)}") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{what} {path!r} cannot be read: {reason}") from error


def read_lines(stream: BinaryIO, name: str) -> Iterator[tuple[str, str]]:
    """Yields the place and the text of each line, with its end.

    Raises:
        UserError: a line is not UTF-8 text, or too long; names the line.
    """
    for number, line in enumerate(iter(lambda: stream.readline(LONGEST_LINE), b""), 1):
        place = f"{name}, line {number}"
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if len(line) == LONGEST_LINE:
            raise UserError(f"{place} has over {LONGEST_LINE:,} bytes: end each record's line")
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            raise UserError(
                f"{place}: not UTF-8 at byte {error.start + 1}: save the file as UTF-8"
            ) from error
        if "\0" in text:
            raise UserError(f"{place}: a NUL byte, which no text has: save the file as UTF-8")
        yield place, text


def read_rows(stream: BinaryIO, name: str, form: Form) -> Iterator[Row]:
    """Yields the rows of a stream as they come; memory does not grow with their number. `name` is
    that of the file, for errors.

    Raises:
        UserError: a row cannot be read; names its line.
    """
    return _READERS[form.kind](stream, name, form)


def is_object(text: str) -> bool:
    """Whether a text is a JSON object, and so hardly meant as text."""
    try:
        return text.lstrip().startswith("{") and isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _read_texts(stream: BinaryIO, name: str, form: Form) -> Iterator[Row]:
    for place, line in read_lines(stream, name):
        yield Row(place, {LINE: line.rstrip("\r\n")})


def _read_objects(stream: BinaryIO, name: str, form: Form) -> Iterator[Row]:
    for place, line in read_lines(stream, name):
        yield Row(place, _parse_object(line, place) if line.strip() else None)


def _parse_object(line: str, place: str) -> dict[str, Any]:
    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        repeated = _repeated(name for name, _ in items)
        if repeated is not None:
            raise UserError(f"{place}: the name {short(repeated)} occurs twice: remove one of them")
        return dict(items)

    try:
        value = json.loads(line, object_pairs_hook=pairs)
    except (ValueError, RecursionError) as error:
        deep = isinstance(error, RecursionError)
        reason = "it is nested too deeply" if deep else getattr(error, "msg", error)
        raise UserError(
            f"{place}: not a JSON object ({reason}): expected fields by name"
        ) from error
    if not isinstance(value, dict):
        raise UserError(
            f'{place}: a JSON {type(value).__name__}, expected an object on each line, as {{"text":'
            " …}"
        )
    return value


def _read_cells(stream: BinaryIO, name: str, form: Form) -> Iterator[Row]:
    # Lines may also end in \r alone.
    lines = (part for _, line in read_lines(stream, name) for part in io.StringIO(line, newline=""))
    rows = csv.reader(
        lines,
        delimiter=form.delimiter,
        quoting=csv.QUOTE_NONE if form.delimiter == "\t" else csv.QUOTE_MINIMAL,
        strict=True,
    )
    columns: list[str] = []
    while True:
        place = f"{name}, line {rows.line_num + 1}"
        try:
            cells = next(rows, None)
        except csv.Error as error:
            raise UserError(f"{place}: {_csv_fault(error)}") from error
        if cells is None:
            return
        if not cells:
            yield Row(place, None)
        elif form.header and not columns:
            columns = [cell.strip() for cell in cells]
            repeated = _repeated(columns)
            if repeated is not None:
                raise UserError(
                    f"{place}: two columns have the name {short(repeated)}: rename one of them"
                )
        else:
            columns = columns or [str(number) for number in range(1, len(cells) + 1)]
            if len(cells) != len(columns):
                advice = f"put a cell that holds {form.delimiter!r} or a new line in quotes"
                if form.delimiter == "\t":
                    advice = (
                        "no cell of a TSV can hold a tab or a new line, so write such data as CSV"
                    )
                raise UserError(
                    f"{place}: {len(cells)} cells, expected {len(columns)} as in the first line:"
                    f" {advice}"
                )
            yield Row(place, dict(zip(columns, cells, strict=True)))


def _repeated(names: Any) -> str | None:
    return next((name for name, count in Counter(names).items() if count > 1), None)


def _csv_fault(error: csv.Error) -> str:
    if "field larger" in str(error):
        longest = csv.field_size_limit()
        return f"a cell of more than {longest:,} characters: shorten it, or close its quote"
    if "end of data" in str(error):
        return "a quote that opens here is not closed: double a quote inside of quotes"
    return f"{error}: double a quote inside of quotes, or set config.task.files.delimiter"


_READERS = {TEXT: _read_texts, JSON: _read_objects, CELLS: _read_cells}
