"""The command `predict`: answers texts, or records from a file or stdin, with JSON lines."""

import contextlib
import io
import itertools
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TextIO

import jax

from prompt_tuning_jax import api, generate
from prompt_tuning_jax import config as configs
from prompt_tuning_jax.cli.machine import load_model, open_artifact
from prompt_tuning_jax.cli.show import say
from prompt_tuning_jax.data import rows as reading
from prompt_tuning_jax.data.records import PLACE, Fields, Record, make_records, task_fields
from prompt_tuning_jax.data.rows import CELLS, JSON, LINE, TEXT, Form, Row
from prompt_tuning_jax.data.template import field_names
from prompt_tuning_jax.errors import UserError, nearest_file, short
from prompt_tuning_jax.run.processes import check_processes
from prompt_tuning_jax.run.progress import with_progress
from prompt_tuning_jax.storage import sha256


def write_answers(
    folder: str, given: Sequence[str], as_json: bool | None, path: str | None, overrides: list[str]
) -> None:
    """Writes a JSON line for each record, its label and probabilities or a text: to the file
    `path`, whole or not at all, or to stdout, a line at a time. `given` are texts or one file; with
    nothing or '-', stdin is read. `as_json` says whether a line or text is a JSON object; None goes
    by the name of the file. `overrides` are of what `predict` takes."""
    if path and os.path.realpath(path) in map(os.path.realpath, given):
        raise UserError(f"--output is {path!r}, which is read: give another")
    with _opened(path) as output, contextlib.redirect_stdout(sys.stderr):
        for row in answers(folder, given, as_json, overrides):
            output.write(json.dumps(row, ensure_ascii=False) + "\n")
            if path is None:
                output.flush()


def answers(
    folder: str, given: Sequence[str], as_json: bool | None, overrides: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Yields the answers to all records, see `write_answers`; says what was cut."""
    own = [word for word in overrides if word.startswith("--config.task.files.")]
    artifact, config, task = open_artifact(folder, [word for word in overrides if word not in own])
    files = config.task.get("files")
    if own:  # the table may be of another form than what was trained on
        kept = {"train": "-"} if files is None else files.to_dict()
        files = configs.build({"task": {"name": "files", "files": kept}}, own).task.files
    writing = "--config.generation.", "--config.seed="
    unread = [word for word in overrides if word.startswith(writing)]
    if unread and not task.target:
        raise UserError(f"{folder!r} has labels and writes no texts: leave {unread[0]!r} out")
    template, columns = artifact.manifest["template"], task_fields(config.task).columns
    changes: Counter[str] = Counter()
    rows, name, form = _read(given, as_json, files, changes)
    if own and form.kind != CELLS:
        raise UserError(f"{name} has no cells: leave {own[0]!r} out, or give a .csv file")
    records = prediction_records(rows, template, columns, form)
    first = next(records, None)
    is_text = as_json is None and form == Form()
    if first and is_text and reading.is_object(first[field_names(template)[0]]):
        say(f"warning: {first[PLACE]} is read as a text: for JSON objects give --jsonl")
    settings, lm = generate.Settings(**config.generation), load_model(config)
    # What cannot be read twice has its first record as fingerprint.
    data = sha256(name) if jax.process_count() > 1 and os.path.isfile(name) else repr(first)
    check_processes(config, {"model": lm.fingerprint, "data": data})
    if first is None:
        say(f"warning: {name} holds no record: nothing is answered")
        return
    records = itertools.chain([first], records)
    answered = api.predict(lm, task, records, artifact, generation=settings, seed=config.seed)
    found: Counter[str] = Counter()
    for row in with_progress(answered, "records", say):
        is_cut = not row.get("finished", True)
        found.update(all=1, shortened=int("shortened" in row), cut=int(is_cut))
        yield row
    for what, count in changes.items():
        say(f"{name}: {count} {what}")
    most = f"config.generation.max_new_tokens is {settings.max_new_tokens}"
    if count := found["shortened"]:
        say(f"warning: {count} of {found['all']} records were too long and lost their end")
    if count := found["cut"]:
        say(f"warning: {count} of {found['all']} texts were cut: {most}")


def _read(given, as_json, files, changes) -> tuple[Iterator[Row], str, Form]:
    """Returns the rows of what was given, where they stand, and their form."""
    paths = [each for each in given if _is_path(each)]
    if paths and len(given) > 1:
        raise UserError(f"{paths[0]!r} stands beside others: give one FILE, or nothing but texts")
    if given and not paths:
        texts = (Row(f"text {number}", {LINE: text}) for number, text in enumerate(given, 1))
        stream, form = io.BytesIO("\n".join(given).encode()), Form(JSON if as_json else TEXT)
        return reading.read_rows(stream, "the texts", form) if as_json else texts, "the texts", form
    name = paths[0] if paths and paths != ["-"] else "<stdin>"
    form = input_form(name, as_json, files)
    if name != "<stdin>":
        return _file_rows(name, form, changes), name, form
    return reading.read_rows(sys.stdin.buffer, name, form, changes), name, form


def input_form(name: str, as_json: bool | None, files: Any) -> Form:
    """Returns the form of the rows to predict: JSON objects or texts, as `as_json` says, or by the
    name if that is None. The delimiter of `files`, the artifact's section `task.files` if any, is
    for tables, and for names with the training file's ending."""
    if as_json is not None:
        return Form(JSON if as_json else TEXT)
    if files is None:
        return reading.form_of(name)
    ending = reading.ending_of(name)
    is_like_training = ending and ending == reading.ending_of(files.train)
    is_table = is_like_training or reading.form_of(name).kind == CELLS
    return reading.form_of(name, files.delimiter if is_table else "", files.header)


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


def _is_path(given: str) -> bool:
    known = reading.form_of(given).kind != TEXT or given.endswith(".txt")
    return given == "-" or known or os.path.exists(given)


def _file_rows(path: str, form: Form, changes: Counter[str]) -> Iterator[Row]:
    try:
        stream = open(path, "rb")  # a pipe too
    except OSError as error:
        hint = f"{nearest_file(path)}: give a file, or such a text on stdin"
        raise UserError(f"{path!r} cannot be read ({error.strerror}){hint}") from error
    with stream:
        yield from reading.read_rows(stream, path, form, changes)


@contextlib.contextmanager
def _opened(path: str | None) -> Iterator[TextIO]:
    """Yields stdout, or a file that gets its name once it is complete."""
    if path is None:
        yield sys.stdout
        return
    # The file that a link leads to is replaced, not the link.
    real = os.path.realpath(path)
    if os.path.exists(real) and not os.path.isfile(real):
        raise UserError(f"cannot write {path!r}: it is not a regular file; give another --output")
    try:
        place = tempfile.TemporaryDirectory(prefix=".", dir=os.path.dirname(real))
    except OSError as error:
        raise UserError(f"cannot write {path!r}: {error.strerror}") from error
    with place as folder:
        partial = os.path.join(folder, "partial")
        with open(partial, "w", encoding="utf-8") as stream:
            yield stream
        os.replace(partial, real)
