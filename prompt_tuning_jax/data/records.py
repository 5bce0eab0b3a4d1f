"""Records: what a row of data becomes, whatever the data's format."""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from prompt_tuning_jax.data.settings import PLACE, column
from prompt_tuning_jax.data.template import parse
from prompt_tuning_jax.errors import UserError, nearest

# Fields by name, the label as the field `label`, and under `PLACE` where the record comes from
# ('train.csv, line 7'). No template can name that.
Record = dict[str, str]
LABEL = "label"
LONGEST = 131_072  # characters of a text; what is longer is a quote that is not closed, or no text


class Source(NamedTuple):
    """What a task's data holds, by the names of its splits, and what is to be said of it."""

    splits: Mapping[str, list[Record]]
    notes: Sequence[str] = ()


class Wanted(NamedTuple):
    """What a task reads of its data.

    Attributes:
        columns: the columns of each field that has another name in the data, in order.
        inputs: fields of the template.
        outputs: fields of the target, or the label's.
        target: whether there is a target, of whose fields a list of texts is a record for each.
    """

    columns: dict[str, list[str]]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    target: bool


def wanted(config: Any) -> Wanted:
    """Returns what the section `task` of a config wants of the data."""
    columns: dict[str, list[str]] = {}
    for entry in config.columns:
        field, name = column(entry) or ("", "")
        columns.setdefault(field, []).append(name)
    outputs = names(config.target) if config.target else (LABEL,)
    return Wanted(columns, names(config.template), outputs, bool(config.target))


def names(template: str) -> tuple[str, ...]:
    """Returns the names of a template's fields, each once, in order."""
    return tuple(dict.fromkeys(field.name for field in parse(template).fields))


def sources(held: Sequence[str], want: Wanted, place: str, hint: str = "") -> dict[str, str]:
    """Returns the field of each of the columns `held`: by default one of the column's own name.

    Args:
        held: names; a number that is none of them is a place among them, from 1.
        want: from `wanted`.
        place: where they stand, for errors.
        hint: what may be the matter if a column is not there.

    Raises:
        UserError: a field of the template, of the target or of the label is not there.
    """
    fields = {name: name for name in held}
    for field, choices in want.columns.items():
        found = next((name for choice in choices if (name := column_of(choice, held))), None)
        # What else has the field's name is not meant, and what is found has no other name: a
        # template must not find the label under its column's.
        fields = {name: other for name, other in fields.items() if other != field}
        if found is not None:
            fields[found] = field
    for field in (*want.inputs, *want.outputs):
        if field not in fields.values():
            raise UserError(_missing(field, fields, want, place) + hint)
    return fields


def records(
    row: Mapping[str, Any], fields: Mapping[str, str], want: Wanted, place: str
) -> Iterator[Record]:
    """Yields the records of one row: one, or one for each text of a list that is the target's.

    Args:
        row: values by column.
        fields: the field of each column, from `sources`.
        want: a value of no field in it may be anything.
        place: where the row is, for errors.

    Raises:
        UserError: a value that is not text, a label that is empty, an empty list.
    """
    record: dict[str, Any] = {}
    lists = []
    read = {*want.inputs, *want.outputs}
    for name, field in fields.items():
        value = row[name]
        if isinstance(value, list) and want.target and field in want.outputs:
            lists.append(field)
            record[field] = [needed(item, field, place) for item in value]
        elif field in read:
            record[field] = needed(value, field, place)
        elif (text := as_text(value)) is not None:
            record[field] = text
    record[PLACE] = place
    if not want.target:
        record[LABEL] = record[LABEL].strip()
        if not record[LABEL]:
            raise UserError(f"{place}: the label is empty: give the row one, or remove it")
    yield from _one_each(record, lists, place)


def as_text(value: Any) -> str | None:
    """Returns a text as it is, a number or truth value as JSON writes it, None for all else."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return json.dumps(value)
    return None


def ranked(rows: Iterable[Record], fields: Sequence[str], seed: int) -> list[list[Record]]:
    """Returns the rows in an order that the seed and their own text decide about, and nothing else.

    Rows whose `fields` are equal stand together, so that a cut between two groups leaves none of
    them on both sides.
    """
    groups: dict[tuple[str, ...], list[Record]] = {}
    for row in rows:
        groups.setdefault(tuple(row[field] for field in fields), []).append(row)

    def digest(key: tuple[str, ...]) -> bytes:
        return hashlib.sha256(json.dumps([seed, *key]).encode()).digest()

    return [groups[key] for key in sorted(groups, key=digest)]


def _one_each(record: dict[str, Any], lists: Sequence[str], place: str) -> Iterator[Record]:
    if not lists:
        yield record
        return
    if len(lists) > 1:
        raise UserError(f"{place}: both {lists[0]!r} and {lists[1]!r} are lists: give one of them")
    [field] = lists
    if not record[field]:
        raise UserError(f"{place}: {field!r} is an empty list: give it a text, or remove the row")
    for text in record[field]:
        yield {**record, field: text}


def needed(value: Any, field: str, place: str) -> str:
    """Returns the text of a value, or raises a UserError if it has none."""
    text = as_text(value)
    if text is None:
        kind = "null" if value is None else type(value).__name__
        raise UserError(f"{place}: {field!r} is {kind}, expected a text")
    if len(text) > LONGEST:
        raise UserError(
            f"{place}: {field!r} has {len(text):,} characters, expected at most {LONGEST:,}:"
            " shorten it, or close a quote in front of it"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{place}: {field!r} has half of a surrogate pair at character {error.start + 1}:"
            " remove it"
        ) from error
    return text


def column_of(choice: str, held: Sequence[str]) -> str | None:
    """Returns which of the columns `held` a choice names; a number that is none of them is a place
    among them, from 1."""
    if choice not in held and choice.isdecimal() and 0 < int(choice) <= len(held):
        return held[int(choice) - 1]
    return choice if choice in held else None


def _missing(field: str, fields: Mapping[str, str], want: Wanted, place: str) -> str:
    shown = [
        repr(name if len(name) < 40 else f"{name[:39]}…") + (f" as {other!r}" * (other != name))
        for name, other in fields.items()
    ]
    inside = ", ".join(shown[:12]) + f" and {len(shown) - 12} more" * (len(shown) > 12)
    if len(shown) == 1:
        inside += " alone (is config.task.files.delimiter right?)"
    columns = want.columns.get(field, [field])
    what = f"no column {columns[0]!r}{nearest(columns[0], [*fields, *fields.values(), 'soft'])}"
    if columns[1:]:
        what = f"none of the columns {', '.join(map(repr, columns))}"
    return (
        f"{place}: {what}, which is the field {field!r}; it has {inside}: name the right one with"
        f" --config.task.columns=\"('{field}=COLUMN',)\""
    )
