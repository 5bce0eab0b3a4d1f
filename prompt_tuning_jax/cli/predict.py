"""The command `predict`: answers records from a file or stdin with JSON lines."""

import contextlib
import itertools
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, TextIO

from prompt_tuning_jax import api, generate
from prompt_tuning_jax.cli.machine import load_model
from prompt_tuning_jax.cli.show import say
from prompt_tuning_jax.config import from_manifest
from prompt_tuning_jax.data.prediction_input import input_form, prediction_records
from prompt_tuning_jax.data.records import PLACE, task_fields
from prompt_tuning_jax.data.rows import Form, is_object, read_rows
from prompt_tuning_jax.data.task import make_task
from prompt_tuning_jax.data.template import field_names
from prompt_tuning_jax.errors import UserError
from prompt_tuning_jax.run.artifact import load_artifact
from prompt_tuning_jax.run.progress import with_progress


def write_answers(
    folder: str,
    stream: BinaryIO,
    as_json: bool | None,
    path: str | None,
    overrides: Sequence[str] = (),
) -> None:
    """Writes a JSON line for each record: its label and probabilities, or a text.

    Args:
      folder: of the artifact.
      as_json: whether a line of `stream` is a JSON object or a text; None goes by its name.
      path: of the file to write, whole or not at all; None is stdout, a line at a time.
      overrides: of `generation.*`, for a task with a target.
    """
    with _opened(path) as output, contextlib.redirect_stdout(sys.stderr):
        for row in answers(folder, stream, as_json, overrides):
            output.write(json.dumps(row, ensure_ascii=False) + "\n")
            if path is None:
                output.flush()


def answers(
    folder: str, stream: BinaryIO, as_json: bool | None, overrides: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Yields the answers to all records, see `write_answers`; says what was cut."""
    artifact = load_artifact(folder)
    config = from_manifest(artifact.manifest, overrides)
    task = make_task(config.task, artifact.manifest["labels"])
    if overrides and not task.target:
        raise UserError(
            f"the artifact {folder!r} has labels and writes no texts: leave {overrides[0]!r} out"
        )
    template, name = artifact.manifest["template"], getattr(stream, "name", "<stdin>")
    form = input_form(name, as_json, config.task.get("files"))
    columns = task_fields(config.task).columns
    records = prediction_records(read_rows(stream, name, form), template, columns, form)
    first = next(records, None)
    if first is None:
        say(f"warning: {name} holds no record: nothing is answered")
        return
    if as_json is None and form == Form() and is_object(first[field_names(template)[0]]):
        say(f"warning: {first[PLACE]} is read as a text: for JSON objects give --jsonl")
    settings = generate.read_settings(config.generation)
    records = itertools.chain([first], records)
    rows = api.predict(
        load_model(config), task, records, artifact, generation=settings, seed=config.seed
    )
    number = shortened = unfinished = 0
    for row in with_progress(rows, "records", say):
        number += 1
        shortened += "shortened" in row
        unfinished += not row.get("finished", True)
        yield row
    if shortened:
        say(f"warning: {shortened} of {number} records were too long and lost their end")
    if unfinished:
        say(
            f"warning: {unfinished} of {number} texts were cut: config.generation.max_new_tokens is"
            f" {settings.max_new_tokens}"
        )


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
