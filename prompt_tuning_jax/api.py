"""`evaluate`, `predict` and `save`: using what was trained, from Python and from the commands."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice, tee
from typing import Any, NamedTuple

import numpy as np

from prompt_tuning_jax import metrics
from prompt_tuning_jax import score as scoring
from prompt_tuning_jax.data.demonstrations import fitted
from prompt_tuning_jax.data.encode import count_shortened, encode_examples, group_by_input
from prompt_tuning_jax.data.records import LABEL, PLACE, Record, require_text
from prompt_tuning_jax.data.task import Task, select_records
from prompt_tuning_jax.data.template import field_names, with_prompt
from prompt_tuning_jax.errors import UserError
from prompt_tuning_jax.generate import DEFAULTS, Settings, check, generate
from prompt_tuning_jax.models.language_model import LanguageModel
from prompt_tuning_jax.models.sites import prefix_length
from prompt_tuning_jax.run import artifact as artifacts
from prompt_tuning_jax.run.artifact import Artifact
from prompt_tuning_jax.run.progress import watched

PREDICTED_AT_ONCE = 256  # records of a call; memory does not grow with how many there are


def evaluate(
    lm: LanguageModel,
    task: Task,
    artifact: Artifact | str | os.PathLike | None = None,
    *,
    split: str = "test",
    prompt: str | None = None,
    demonstrations: Sequence[Record] = (),
    generation: Settings | None = DEFAULTS,
    seed: int = 0,
    max_length: int = 0,
    log: Callable = print,
) -> dict[str, Any]:
    """Scores the model on a split of the task.

    Args:
      lm: from `load`.
      task: from `data.task.make_task`.
      artifact: what tailors the model, or its folder; None for the model alone.
      split: 'train', 'validation', 'test', or a part such as 'test[:100]'.
      prompt: a hand-written prompt for the model alone. It stands where the template has `{soft}`,
        or, where it names a field itself, takes the whole template's place.
      demonstrations: answered records, from `data.demonstrations.choose`, that stand in front of
        every example of the model alone, as many of the first as fit. With a target the loss
        alone is measured.
      generation: how a task with a target writes its texts; None measures its loss alone.
      seed: of what is drawn where `generation` has a temperature.
      max_length: the most positions that an example of the model alone may take, 0 for all there
        are; an artifact brings its own, and demonstrations take what there is.
      log: takes a line of text, where it takes long.

    Returns:
      loss (nats an example), examples, and with labels accuracy (0 to 1), the task's other metrics,
      and intervals: [low, high] of each metric by its name, see `metrics.label_metrics`; where
      demonstrations are given, how many of them stand in front of each; if any example was too
      long: shortened, how many lost the end of their longest field. With a target the metrics are
      those of texts, one for each distinct input: texts, how many, and if any was cut at the most
      new tokens: unfinished, how many; texts_shortened, how many inputs lost the end of their
      longest field to make room for as many new tokens.

    Raises:
      UserError: the artifact belongs to another model, or a template, split or record is at fault.
      RunError: the model's scores are not finite.
    """
    if artifact is not None and demonstrations:
        raise UserError("an artifact was trained without demonstrations: evaluate it without")
    adaptation = _adaptation(lm, task, artifact)
    if artifact is None:
        adaptation = adaptation._replace(max_length=max_length)
    if prompt is not None:
        adaptation = adaptation._replace(template=with_prompt(task.template, prompt))
    rows = select_records(task, split)
    counts = {}
    if demonstrations:
        examples, fitting = _demonstrated(lm, task, rows, adaptation.template, demonstrations)
        counts["demonstrations"] = fitting
        generation = None
    else:
        examples = _encode(lm, task, rows, adaptation)
    scores = scoring.score(lm, examples, adaptation.collections, log=log)
    scoring.check_finite(lm, scores)
    answers = np.array([example.answer for example in examples])
    found: dict[str, Any] = scoring.metrics(scores, answers) | counts
    shortened, _ = count_shortened(examples)
    if shortened:
        found["shortened"] = shortened
    if task.target:
        if generation is None:
            return found
        return found | _text_metrics(lm, task, rows, adaptation, generation, seed, log)
    values = [value for value, _ in task.labels]
    return found | metrics.label_metrics(scores.argmax(1), answers, values, task.metrics)


def predict(
    lm: LanguageModel,
    task: Task,
    records: Iterable[Mapping[str, str] | str],
    artifact: Artifact | str | os.PathLike | None = None,
    *,
    generation: Settings = DEFAULTS,
    seed: int = 0,
) -> Iterator[dict[str, Any]]:
    """Labels records as they come, or writes a text for each where the task has a target.

    Args:
      lm: from `load`.
      task: from `data.task.make_task`.
      records: the template's fields by name, or the text alone where the template has one field.
      artifact: what tailors the model, or its folder; None for the model alone.
      generation: how texts are written.
      seed: of what is drawn where `generation` has a temperature.

    Yields:
      label (its value in the data) and probabilities by label, or text and finished (false if it
      was cut at the most new tokens), in the order of the records. Where a record was too long:
      shortened, how many tokens its longest field lost.

    Raises:
      UserError: one record in place of several, or a record that is at fault.
    """
    if isinstance(records, str | Mapping):
        # Its characters, or its fields' names, would be answered one by one.
        raise UserError(f"records is one {type(records).__name__}: give a list of it, [record]")
    adaptation = _adaptation(lm, task, artifact)
    rows = (
        {PLACE: (place := f"record {number}"), **_fields(task, adaptation.template, record, place)}
        for number, record in enumerate(records)
    )
    if task.target:
        written = _texts(lm, task, rows, adaptation, generation, seed)
        for example, each in written:
            yield {"text": each.text, "finished": each.finished, **_shortened(example)}
        return
    values, shape = [value for value, _ in task.labels], None
    while chunk := list(islice(rows, PREDICTED_AT_ONCE)):
        examples = _encode(lm, task, chunk, adaptation)
        shape = scoring.next_shape(examples, shape)
        scores = scoring.score(lm, examples, adaptation.collections, shape=shape)
        scoring.check_finite(lm, scores)
        for example, row in zip(examples, scoring.probabilities(scores), strict=True):
            shares = [round(float(share), 6) for share in row]
            probabilities = dict(zip(values, shares, strict=True))
            label = values[int(row.argmax())]
            yield {"label": label, "probabilities": probabilities, **_shortened(example)}


def save(artifact: Artifact, folder: str | os.PathLike) -> None:
    """Writes an artifact as a folder of two files; one that is there before is replaced."""
    artifacts.save(_read(artifact), folder)


class _Adaptation(NamedTuple):
    """What tailors the model: collections, the template that they belong to, and its length."""

    collections: Any
    template: str
    max_length: int


def _adaptation(lm, task, artifact) -> _Adaptation:
    if artifact is None:
        return _Adaptation({}, with_prompt(task.template, ""), 0)
    artifact = _read(artifact)
    artifacts.check(artifact, lm)
    manifest = artifact.manifest
    return _Adaptation(artifact.collections, manifest["template"], manifest["max_length"])


def _read(artifact) -> Artifact:
    if isinstance(artifact, str | os.PathLike):
        return artifacts.load(artifact)
    if not isinstance(artifact, Artifact):
        raise UserError(
            f"the artifact is a {type(artifact).__name__}: give result.artifact of what `tune`"
            " returned, or a folder"
        )
    return artifact


def _encode(lm, task, rows, adaptation):
    collections, template, max_length = adaptation
    return scoring.encode_for(lm, task, rows, collections, max_length, template)


def _texts(lm, task, rows, adaptation, settings, seed):
    """The example and the generation of each record, as they are asked for."""
    check(settings, seed)
    taken = prefix_length(adaptation.collections)
    room = lm.spec.max_positions - taken - settings.max_new_tokens + 1
    if room < 1:
        raise UserError(
            f"generation.max_new_tokens is {settings.max_new_tokens} and the model has"
            f" {lm.spec.max_positions} positions, {taken} of them taken by a prefix: give fewer"
        )
    adaptation = adaptation._replace(max_length=min(adaptation.max_length or room, room))
    # What is to be found takes no room away.
    outputs = field_names(task.target)
    asked = ({k: v for k, v in row.items() if k not in outputs} for row in rows)
    encoded = (example for row in asked for example in _encode(lm, task, [row], adaptation))
    ahead, behind = tee(encoded)
    yield from zip(behind, generate(lm, ahead, adaptation.collections, settings, seed), strict=True)


def _text_metrics(lm, task, rows, adaptation, settings, seed, log):
    """Metrics of the texts that are written for the distinct inputs of the records."""
    inputs, references = group_by_input(task, rows)
    texts = _texts(lm, task, inputs, adaptation, settings, seed)
    pairs = list(watched(texts, "texts written", log, len(inputs)))
    written = [each for _, each in pairs]
    # Other examples than those of the loss: what is written needs more room than the target.
    cut = {
        "unfinished": sum(not each.finished for each in written),
        "texts_shortened": count_shortened([example for example, _ in pairs])[0],
    }
    counts = {"texts": len(written)} | {name: count for name, count in cut.items() if count}
    texts = [each.text.strip() for each in written]
    return counts | metrics.text_metrics(texts, references, task.metrics)


def _shortened(example):
    return {"shortened": example.dropped} if example.dropped else {}


def _demonstrated(lm, task, rows, template, demonstrations):
    def measure(rows, shown):
        return encode_examples(
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


def _fields(task, template, record, place):
    """A record without its label, where that is what is asked for."""
    if not isinstance(record, str | Mapping):
        raise UserError(
            f"{place} is a {type(record).__name__}: expected a text, or a dict of fields by name"
        )
    fields = field_names(template)
    if not isinstance(record, str):
        given = {name: value for name, value in record.items() if task.target or name != LABEL}
        return given | {
            name: require_text(given[name], name, place) for name in fields if name in given
        }
    if len(fields) != 1:
        raise UserError(
            f"the template has the fields {', '.join(fields)}: give each record as these by name,"
            " not as one text"
        )
    return {fields[0]: require_text(record, fields[0], place)}
