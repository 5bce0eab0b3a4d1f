"""Records to predict: texts, JSON objects or cells, without labels or targets."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from prompt_tuning_jax.data.records import Fields, Record, make_records
from prompt_tuning_jax.data.rows import CELLS, JSON, LINE, TEXT, Form, Row, ending_of, form_of
from prompt_tuning_jax.data.template import field_names
from prompt_tuning_jax.errors import UserError, short


def input_form(name: str, as_json: bool | None, files: Any) -> Form:
    """Returns the form of the rows to predict: JSON objects or texts, as `as_json` says, or by the
    name if that is None. The delimiter of `files`, the artifact's section `task.files` if any, is
    for tables, and for names with the training file's ending."""
    if as_json is not None:
        return Form(JSON if as_json else TEXT)
    if files is None:
        return form_of(name)
    ending = ending_of(name)
    is_table = form_of(name).kind == CELLS or (ending and ending == ending_of(files.train))
    return form_of(name, files.delimiter if is_table else "", files.header)


def prediction_records(
    rows: Iterable[Row], template: str, columns: Mapping[str, Sequence[str]], form: Form
) -> Iterator[Record]:
    """Yields a record with the fields of `template` for each row; memory does not grow with their
    number. `columns` has further names that a field may have, see `records.Fields`."""
    fields = field_names(template)
    if not fields:
        raise UserError(
            f"the template {short(template, 200)} has no field, so all answers would be the same:"
            " train the artifact again with a template that has {text}"
        )
    choices = {field: [*columns.get(field, ()), field] for field in fields}
    if form.kind == TEXT:
        if len(fields) != 1:
            raise UserError(
                f"the template has the fields {', '.join(fields)[:200]}: give a JSON object on each"
                f' line, {{"{fields[0][:60]}": "...", ...}}, with --jsonl or in a .jsonl file, or'
                " cells in a .csv file"
            )
        choices = {fields[0]: [LINE]}
    return make_records(rows, Fields(choices, fields, (), True), numbered=form.kind == CELLS)
