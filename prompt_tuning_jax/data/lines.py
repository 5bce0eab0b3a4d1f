"""Records as they come, one a line: what is asked for, without labels or targets."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence

from prompt_tuning_jax.data.records import PLACE, Record, names, needed
from prompt_tuning_jax.errors import UserError, nearest, short


def records(
    lines: Iterable[tuple[str, str]],
    template: str,
    columns: Mapping[str, Sequence[str]],
    as_json: bool,
) -> Iterator[Record]:
    """Yields the record of each line; memory does not grow with how many there are.

    Args:
        lines: (place, text), such as ('a.txt, line 3', 'Shares fall').
        template: whose fields count.
        columns: further names that a field may have in a JSON object, see `records.Wanted`.
        as_json: whether a line is a JSON object with the fields by name, of which a blank line is
            none. Otherwise it is the text of the template's only field, whatever it looks like.

    Raises:
        UserError: names the place.
    """
    fields = names(template)
    if not fields:
        raise UserError(
            f"the template {short(template, 200)} names no field, so that all answers would be"
            " alike: train the artifact again, with {text} where the text stands"
        )
    if not as_json and len(fields) != 1:
        raise UserError(
            f"the template has the fields {', '.join(fields)[:200]}: give a line for each as a JSON"
            f' object, {{"{fields[0][:60]}": "...", ...}}, with --jsonl or in a file that ends in'
            " .jsonl"
        )
    choices = {field: (*columns.get(field, ()), field) for field in fields}
    for place, line in lines:
        if not as_json:
            yield {fields[0]: needed(line, fields[0], place), PLACE: place}
        elif line.strip():
            yield _record(line, choices, place)


def _record(line: str, choices: Mapping[str, Sequence[str]], place: str) -> Record:
    try:
        held = json.loads(line)
    except (ValueError, RecursionError) as error:
        deep = isinstance(error, RecursionError)
        reason = "it is nested too deeply" if deep else getattr(error, "msg", error)
        raise UserError(f"{place}: no JSON object: {reason}") from error
    if not isinstance(held, dict):
        raise UserError(f"{place}: {type(held).__name__}, expected a JSON object")
    record = {PLACE: place}
    for field, columns in choices.items():
        column = next((name for name in columns if name in held), None)
        if column is None:
            inside = ", ".join(repr(name[:40]) for name in list(held)[:12]) or "none"
            raise UserError(f"{place}: no field {field!r}{nearest(field, held)}: it has {inside}")
        record[field] = needed(held[column], column, place)
    return record
