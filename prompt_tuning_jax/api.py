"""The five names for notebooks and forks; the commands are thin over the same functions."""

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np

from prompt_tuning_jax import artifact as artifacts
from prompt_tuning_jax import metrics, scoring
from prompt_tuning_jax.artifact import Artifact
from prompt_tuning_jax.data import task as tasks
from prompt_tuning_jax.data.demonstrations import fitted
from prompt_tuning_jax.data.records import LABEL, Record, names
from prompt_tuning_jax.data.task import Task
from prompt_tuning_jax.data.template import with_prompt
from prompt_tuning_jax.errors import UserError
from prompt_tuning_jax.models import LanguageModel, load
from prompt_tuning_jax.train import Result, encode, tune

__all__ = ("Result", "evaluate", "load", "predict", "save", "tune")

PREDICTED_AT_ONCE = 256  # records of a call; memory does not grow with how many there are


def evaluate(
    lm: LanguageModel,
    task: Task,
    artifact: Artifact | None = None,
    *,
    split: str = "test",
    prompt: str | None = None,
    demonstrations: Sequence[Record] = (),
) -> dict[str, Any]:
    """Scores the model on a split of the task.

    Args:
      lm: from `load`.
      task: from `data.task.make`.
      artifact: what tailors the model; None for the model alone.
      split: 'train', 'validation', 'test', or a part such as 'test[:100]'.
      prompt: a hand-written prompt for the model alone. It stands where the template has `{soft}`,
        or, where it names a field itself, takes the whole template's place.
      demonstrations: answered records, from `data.demonstrations.choose`, that stand in front of
        every example of the model alone, as many of the first as fit.

    Returns:
      loss (nats an example), examples, and with labels accuracy (0 to 1), the task's other metrics,
      and intervals: [low, high] of each metric by its name, see `metrics.label_metrics`; where
      demonstrations are given, how many of them stand in front of each; if any example was too
      long: shortened, how many lost the end of their longest field.

    Raises:
      UserError: the artifact belongs to another model, or a template, split or record is at fault.
    """
    if artifact is not None and demonstrations:
        raise UserError("an artifact was trained without demonstrations: evaluate it without")
    collections, template, max_length = _adaptation(lm, task, artifact)
    if prompt is not None:
        template = with_prompt(task.template, prompt)
    rows = tasks.records(task, split)
    counts = {}
    if demonstrations:
        examples, fitting = _demonstrated(lm, task, rows, template, demonstrations)
        counts["demonstrations"] = fitting
    else:
        examples = encode(lm, task, rows, collections, max_length, template)
    scores = scoring.score(lm, examples, collections)
    answers = np.array([example.answer for example in examples])
    found: dict[str, Any] = scoring.metrics(scores, answers) | counts
    shortened, _ = tasks.dropped(examples)
    if shortened:
        found["shortened"] = shortened
    if task.target:
        return found
    values = [value for value, _ in task.labels]
    return found | metrics.label_metrics(scores.argmax(1), answers, values, task.metrics)


def predict(
    lm: LanguageModel,
    task: Task,
    records: Iterable[Mapping[str, str] | str],
    artifact: Artifact | None = None,
) -> Iterator[dict[str, Any]]:
    """Labels records as they come.

    Args:
      lm: from `load`.
      task: from `data.task.make`.
      records: the template's fields by name, or the text alone where the template has one field.
      artifact: what tailors the model; None for the model alone.

    Yields:
      label (its value in the data) and probabilities by label, in the order of the records.
    """
    collections, template, max_length = _adaptation(lm, task, artifact)
    values = [value for value, _ in task.labels]
    waiting = iter(records)
    while chunk := list(islice(waiting, PREDICTED_AT_ONCE)):
        rows = [_fields(task, template, record) for record in chunk]
        examples = encode(lm, task, rows, collections, max_length, template)
        for row in scoring.probabilities(scoring.score(lm, examples, collections)):
            shares = [round(float(share), 6) for share in row]
            probabilities = dict(zip(values, shares, strict=True))
            yield {"label": values[int(row.argmax())], "probabilities": probabilities}


def save(artifact: Artifact, folder: str | os.PathLike) -> None:
    """Writes an artifact as a folder of two files; one that is there before is replaced."""
    artifacts.save(artifact, folder)


def _adaptation(lm, task, artifact):
    if artifact is None:
        return {}, with_prompt(task.template, ""), 0
    artifacts.check(artifact, lm)
    return artifact.collections, artifact.manifest["template"], artifact.manifest["max_length"]


def _demonstrated(lm, task, rows, template, demonstrations):
    def measure(rows, shown):
        return tasks.examples(
            task,
            rows,
            lm.tokenizer,
            num_virtual_tokens=0,
            add_bos=lm.tokenizer.add_bos,
            max_length=sys.maxsize,
            template=template,
            demonstrations=shown,
        )

    return fitted(rows, demonstrations, measure, lm.spec.max_positions)


def _fields(task, template, record):
    """A record without its label, where that is what is asked for."""
    if not isinstance(record, str):
        return {name: value for name, value in record.items() if task.target or name != LABEL}
    fields = names(template)
    if len(fields) != 1:
        raise UserError(
            f"the template has the fields {', '.join(fields)}: give each record as these by name,"
            " not as one text"
        )
    return {fields[0]: record}
