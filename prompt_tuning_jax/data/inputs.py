"""Records as they come, one a line: what is asked for, without labels or targets."""

import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from prompt_tuning_jax.data.files import DELIMITERS, JSON_ENDINGS, cells_of, delimiter_of, object_of
from prompt_tuning_jax.data.records import PLACE, Record, column_of, names, needed
from prompt_tuning_jax.errors import UserError, nearest, short


class Form(NamedTuple):
    """What a line is: the text of the template's only field, whatever it looks like; a JSON object
    with the fields by name, of which a blank line is none; or cells, for which there is a delimiter
    and perhaps a header."""

    as_json: bool = False
    delimiter: str = ""
    header: bool = True


def form_of(
    name: str, as_json: bool | None, delimiter: str = "", header: bool = True, trained: str = ""
) -> Form:
    """Returns the form of a file's lines: as it is asked for, else by the ending of its name.

    Args:
        name: of the file.
        as_json: whether lines are JSON objects or texts; None where nobody says.
        delimiter: between cells, as in `files.read`; '' goes by the name.
        header: whether the first line of cells names the columns.
        trained: the file of cells or objects that was trained on: where a delimiter made it cells,
            so does it others of this ending.
    """
    ending, known = (os.path.splitext(path)[1].lower() for path in (name, trained))
    if as_json is None and (ending in DELIMITERS or (delimiter and ending and ending == known)):
        return Form(delimiter=delimiter_of(name, delimiter), header=header)
    return Form(ending in JSON_ENDINGS if as_json is None else as_json)


def records(
    lines: Iterable[tuple[str, str]],
    template: str,
    columns: Mapping[str, Sequence[str]],
    form: Form,
    name: str = "<stdin>",
) -> Iterator[Record]:
    """Yields the record of each line; memory does not grow with how many there are.

    Args:
        lines: (place, text with its end), such as ('a.txt, line 3', 'Shares fall').
        template: whose fields count.
        columns: further names that a field may have in the data, see `records.Wanted`.
        form: what a line is.
        name: of the file, for errors.

    Raises:
        UserError: names the place.
    """
    fields = names(template)
    if not fields:
        raise UserError(
            f"the template {short(template, 200)} names no field, so that all answers would be"
            " alike: train the artifact again, with {text} where the text stands"
        )
    if form.as_json or form.delimiter:
        choices = {field: (*columns.get(field, ()), field) for field in fields}
        rows = _cells(lines, name, form) if form.delimiter else _objects(lines)
        yield from (_record(row, choices, place, bool(form.delimiter)) for place, row in rows)
        return
    if len(fields) != 1:
        raise UserError(
            f"the template has the fields {', '.join(fields)[:200]}: give a line for each as a JSON"
            f' object, {{"{fields[0][:60]}": "...", ...}}, with --jsonl or in a file that ends in'
            " .jsonl, or cells in one that ends in .csv"
        )
    for place, line in lines:
        yield {fields[0]: needed(line.rstrip("\r\n"), fields[0], place), PLACE: place}


def is_object(text: str) -> bool:
    """Whether a text is a JSON object, which is hardly meant as text."""
    try:
        return text.lstrip().startswith("{") and isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _cells(
    lines: Iterable[tuple[str, str]], name: str, form: Form
) -> Iterator[tuple[str, dict[str, Any]]]:
    # Lines may end in \r alone, as `files.read` takes them.
    texts = (part for _, line in lines for part in io.StringIO(line, newline=""))
    for number, row in cells_of(texts, name, form.delimiter, form.header):
        if row is not None:
            yield f"{name}, line {number}", row


def _objects(lines: Iterable[tuple[str, str]]) -> Iterator[tuple[str, dict[str, Any]]]:
    for place, line in lines:
        if not line.strip():
            continue
        yield place, object_of(line, place)


def _record(
    held: Mapping[str, Any], choices: Mapping[str, Sequence[str]], place: str, ordered: bool
) -> Record:
    """`ordered` columns have numbers too, as `records.sources` takes them; the names of an object
    stand in any order."""
    record = {PLACE: place}
    inside = list(held)
    for field, columns in choices.items():
        named = (column_of(name, inside) if ordered else name for name in columns)
        column = next((name for name in named if name in held), None)
        if column is None:
            shown = ", ".join(repr(name[:40]) for name in inside[:12]) or "none"
            raise UserError(f"{place}: no field {field!r}{nearest(field, held)}: it has {shown}")
        record[field] = needed(held[column], column, place)
    return record
