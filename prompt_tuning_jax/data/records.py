"""Records: named texts, made from the rows of any data format."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from typing import Any, NamedTuple

from prompt_tuning_jax.config.key import Key, plain_scalar
from prompt_tuning_jax.data.rows import Row
from prompt_tuning_jax.data.template import field_names, plain_name
from prompt_tuning_jax.errors import UserError, nearest

# Texts by field. The label is the field `label`. PLACE holds where the record comes from
# ('train.csv, line 7'); no template can name it.
Record = dict[str, str]
LABEL = "label"
PLACE = "(place)"
# Of a record whose label is '', or that lacks a field of the target: the error if it is needed.
UNLABELLED = "(no label)"
LONGEST = 131_072  # characters of a text; a longer one is usually a quote that is not closed
COLUMNS_HINT = ": name the right column with --config.task.columns=\"({others}'{field}=COLUMN',)\""


class Source(NamedTuple):
    """The data of a task: records by split, or functions that read them, and notes for the log."""

    splits: Mapping[str, Any]
    notes: Sequence[str] = ()


def digest(*parts: Any) -> str:
    """Returns a hex digest of lists of records and of texts."""
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _parse_entry(entry: Any) -> tuple[str, str] | None:
    """Returns (field, column) of an entry 'field=column' of `task.columns`, or None."""
    field, equals, name = (part.strip() for part in plain_name(str(entry)).partition("="))
    return (field, name) if equals and name and field.isidentifier() else None


# The key `task.columns`: 'field=column' if the data has another name than the template. The label's
# field is `label`. A column without a name has its number, from 1. If several columns are given for
# a field, the first that a file has is read.
COLUMNS = Key(
    (),
    "texts 'field=column', as ('text=sentence', 'label=2')",
    lambda value: all(map(_parse_entry, value)),
)


class Fields(NamedTuple):
    """The fields that a task reads."""

    # For a field with another name in the data, the columns to look for, in order.
    columns: Mapping[str, Sequence[str]]
    inputs: tuple[str, ...]  # fields of the template
    outputs: tuple[str, ...]  # fields of the target, or the label
    # Whether there is a target. A list of texts in one of its fields makes a record for each text.
    target: bool


def task_fields(config: Any) -> Fields:
    """Returns the fields that the section `task` of a config reads."""
    columns: dict[str, list[str]] = {}
    for entry in config.get("columns", ()):
        field, name = _parse_entry(entry) or ("", "")
        columns.setdefault(field, []).append(name)
    outputs = field_names(config.target) if config.target else (LABEL,)
    return Fields(columns, field_names(config.template), outputs, bool(config.target))


def make_records(
    rows: Iterable[Row], fields: Fields, *, numbered: bool = False, hint: str = ""
) -> Iterator[Record]:
    """Yields the records of each row. Values that `fields` does not name may be anything. If
    `numbered`, '2' is the second column if none has that name. `hint` says what to type if a column
    is missing, with '{field}' for the field."""
    held, names, fault = None, dict[str, str](), ""
    for place, row in rows:
        if row.keys() != held:
            held = row.keys()
            names, fault = _match_columns(list(row), fields, place, numbered, hint)
        yield from _records_of(row, names, fields, place, fault)


def require_text(value: Any, field: str, place: str) -> str:
    """Returns a value as text, or raises a UserError that names the field and the place."""
    text = _as_text(value)
    if text is None:
        plain = value is None or isinstance(value, float)  # null, NaN, Infinity
        kind = json.dumps(value) if plain else type(value).__name__
        raise UserError(f"{place}: {field!r} is {kind}, expected a text")
    if len(text) > LONGEST:
        raise UserError(
            f"{place}: {field!r} has {len(text):,} characters, expected at most {LONGEST:,}:"
            " shorten it, or close a quote before it"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{place}: {field!r} has half of a surrogate pair at character {error.start + 1}:"
            " remove it"
        ) from error
    return text


def shuffled_groups(
    records: Iterable[Record], fields: Sequence[str], seed: int
) -> list[list[Record]]:
    """Returns the records in an order that depends on the seed and their own text alone. Those with
    equal `fields` are a group, so that no cut between groups has the same input on both sides."""
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        groups.setdefault(tuple(record.get(field, "") for field in fields), []).append(record)
    ordered = sorted(groups, key=lambda key: sha256(json.dumps([seed, *key]).encode()).digest())
    return [groups[key] for key in ordered]


def _as_text(value: Any) -> str | None:
    """Returns a text unchanged, a number or truth value as in JSON, and None for anything else."""
    value = plain_scalar(value)
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return json.dumps(value)
    return None


def _match_columns(
    held: Sequence[str], fields: Fields, place: str, numbered: bool, hint: str
) -> tuple[dict[str, str], str]:
    """Returns the field of each column, of its own name unless `fields.columns` says otherwise; and
    the error of all records if the label, or a field of the target, has no column."""
    names = {name: plain_name(name) for name in held}
    own = {plain: name for name, plain in names.items()}
    if len(own) < len(names):
        raise UserError(f"{place}: the names of two columns look alike: rename one of them")
    known = {str(number): name for number, name in enumerate(held, 1) if numbered} | own
    for field, choices in fields.columns.items():
        found = next((known[choice] for choice in choices if choice in known), None)
        # A column that happens to have the field's name is dropped, and the chosen column loses
        # its own name: otherwise a template could find the label under it.
        names = {name: other for name, other in names.items() if other != field}
        if found is not None:
            names[found] = field
    fault = ""
    for field in (*fields.inputs, *fields.outputs):
        if field not in names.values():
            turned = [f for f in fields.columns if field in fields.columns[f] and f in own]
            if turned:
                raise UserError(
                    f"{place}: config.task.columns is the other way round: write"
                    f" '{field}={turned[0]}', the template's field first"
                )
            shown = {name: names.get(name, name) for name in held}
            message = _missing(field, shown, fields, numbered)
            pairs = ((f, name) for f, each in fields.columns.items() for name in each)
            others = [f"'{f}={name}'," for f, name in pairs if f != field]
            fault = f"{place}: {message}{hint.format(field=field, others=''.join(others))}"
            if field in fields.inputs:
                raise UserError(fault)
    return names, fault


def _missing(field: str, names: Mapping[str, str], fields: Fields, numbered: bool) -> str:
    choices = fields.columns.get(field, [field])
    known = [*names, *names.values(), "soft"]
    wanted = " or ".join(map(repr, choices)) + nearest(choices[0], known)
    if field not in choices:
        wanted += f" for the field {field!r}"
    shown = [
        repr(name if len(name) < 40 else f"{name[:39]}…") + (f" as {other!r}" * (other != name))
        for name, other in names.items()
    ]
    held = ", ".join(shown[:12]) + f" and {len(shown) - 12} more" * (len(shown) > 12)
    if numbered and len(shown) == 1:
        held += " alone (is config.task.files.delimiter right?)"
    return f"no column {wanted}; its columns are {held or 'none'}"


def _records_of(
    row: Mapping[str, Any], names: Mapping[str, str], fields: Fields, place: str, fault: str
) -> list[Record]:
    record: dict[str, Any] = {}
    lists = {}
    for name, field in names.items():
        value = row[name]
        is_output = field in fields.outputs
        if isinstance(value, list) and fields.target and is_output:
            lists[field] = [require_text(item, field, place) for item in value]
        elif field in fields.inputs or (is_output and value is not None):
            record[field] = require_text(value, field, place)
        elif (text := _as_text(value)) is not None:
            record[field] = text
    if not fields.target:
        record[LABEL] = record.get(LABEL, "").strip()
        if not record[LABEL]:
            record[UNLABELLED] = fault or (
                f"{place}: the label is empty: give the row one, or remove it, or if a split has no"
                " labels, as a hidden test split, leave its file out, or give another split:"
                " --config.task.validation='validation[:50%]' --config.task.test='validation[50%:]'"
            )
    elif unread := [field for field in fields.outputs if field not in record | lists]:
        record[UNLABELLED] = fault or f"{place}: {unread[0]!r} is null, expected a text"
    return [record | each | {PLACE: place} for each in _listed(lists, place)]


def _listed(lists: Mapping[str, list[str]], place: str) -> list[dict[str, str]]:
    """Returns a dict for each text of the field that is a list; an empty one if no field is."""
    if len(lists) > 1:
        first, second = [*lists][:2]
        raise UserError(f"{place}: both {first!r} and {second!r} are lists: give one of them")
    for field, texts in lists.items():
        if not texts:
            raise UserError(f"{place}: {field!r} is an empty list: give it a text, or remove it")
        return [{field: text} for text in texts]
    return [{}]
