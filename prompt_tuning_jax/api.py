"""`evaluate`, `predict` and `save`: the use of what was trained, from Python and from commands."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice, tee
from typing import Any, NamedTuple

import jax
import numpy as np

from prompt_tuning_jax import metrics
from prompt_tuning_jax import score as scoring
from prompt_tuning_jax.calibration import Calibration, check_labels, halves
from prompt_tuning_jax.data.batch import stream_shape
from prompt_tuning_jax.data.chat import read_chat
from prompt_tuning_jax.data.encode import count_shortened, group_by_input
from prompt_tuning_jax.data.records import LABEL, PLACE, Record, require_text
from prompt_tuning_jax.data.task import Task, output_fields, select_records, validation_records
from prompt_tuning_jax.data.template import field_names, plain_name, with_prompt
from prompt_tuning_jax.errors import UserError, short
from prompt_tuning_jax.generate import DEFAULTS, Settings, check_settings, generate
from prompt_tuning_jax.models.language_model import LanguageModel
from prompt_tuning_jax.models.sites import Given, check_given, from_tensors, prefix_length
from prompt_tuning_jax.run.artifact import Artifact, check_artifact, load_artifact, save_artifact
from prompt_tuning_jax.run.progress import with_progress
from prompt_tuning_jax.sharding import shard

PREDICTED_AT_ONCE = 256  # records that are read and scored together


def evaluate(
    lm: LanguageModel,
    task: Task,
    artifact: Artifact | str | os.PathLike | None = None,
    *,
    split: str | Sequence[Record] = "test",
    prompt: str | None = None,
    demonstrations: Sequence[Record] = (),
    calibration: Calibration | None = None,
    generation: Settings | None = DEFAULTS,
    seed: int = 0,
    max_length: int = 0,
    log: Callable = print,
) -> dict[str, Any]:
    """Scores the model on a split of the task.

    Args:
      lm: from `load`.
      task: from `data.task.make_task`.
      artifact: what adapts the model, or its folder; None for the model alone.
      split: 'train', 'validation', 'test', a part such as 'test[:100]', or records of them.
      prompt: a written prompt for the model alone. It replaces `{soft}` in the template, or the
        whole template if it names a field itself.
      demonstrations: answered records in front of every example of the model alone, from
        `data.demonstrations.choose_demonstrations`. The first ones are kept if not all fit. With
        a target only the loss is measured.
      calibration: of the labels' scores; by default the artifact's, if it has one.
      generation: how a task with a target writes its texts; None measures only the loss.
      seed: of the random draws if `generation` has a temperature.
      max_length: the most positions of an example without demonstrations, 0 for all of the
        model's. Only for the model alone: an artifact brings its own.
      log: takes a line of text: progress and warnings.

    Returns:
      loss (nats an example) and examples, their number. With labels: the task's metrics, such as
      accuracy (0 to 1), and intervals, [low, high] of each metric by its name, see
      `metrics.label_metrics`. With a target: the metrics of the texts, one text for each distinct
      input; texts, their number; and the tokenizer of bleu and rouge_l. Counts that are not 0:
      shortened, examples that lost the end of their longest field; unfinished, texts that were cut
      at the most new tokens; texts_shortened, inputs that lost the end of their longest field to
      make room for a text.
      With demonstrations: demonstrations, the number in front of each example.
      With a calibration: calibrated, the metrics of calibrated scores; all else is without it.

    Raises:
      UserError: the artifact belongs to another model, or a template, split or record is wrong.
      RunError: the model's scores are not finite.
    """
    artifact = None if artifact is None else _read(artifact)
    calibration = calibration or _calibration(task, artifact)
    how: dict[str, Any] = {"demonstrations": demonstrations, "max_length": max_length, "log": log}
    scores, answers, counts = label_scores(lm, task, artifact, split=split, prompt=prompt, **how)
    found = scoring.loss_and_accuracy(scores, answers) | counts
    if not task.target:
        values, names = [value for value, _ in task.labels], [*task.metrics]
        if calibration is None:
            return found | metrics.label_metrics(scores, answers, values, names)
        names = [*dict.fromkeys(["accuracy", *names, "calibration_error"])]
        found |= metrics.label_metrics(scores, answers, values, names)
        calibrated = metrics.label_metrics(calibration.apply(scores), answers, values, names)
        return found | {"calibrated": calibrated}
    if generation is None or demonstrations:
        return found
    use = _use(lm, task, artifact, prompt or "", max_length)
    rows = _rows(use.task, split)
    return found | _text_metrics(lm, rows, use, generation, seed, log)


class Scored(NamedTuple):
    """A split of a task as the model scores it."""

    # float32[N, C] nats, the log-probability of each label, or of the target alone.
    scores: np.ndarray
    answers: np.ndarray  # int[N], the place of the right label
    counts: dict[str, int]  # shortened and demonstrations, as in what `evaluate` returns


def label_scores(
    lm: LanguageModel,
    task: Task,
    artifact: Artifact | str | os.PathLike | None = None,
    *,
    split: str | Sequence[Record] = "test",
    prompt: str | None = None,
    demonstrations: Sequence[Record] = (),
    max_length: int = 0,
    log: Callable = print,
) -> Scored:
    """Returns the scores behind `evaluate`, which explains the arguments and errors."""
    if artifact is not None and (prompt is not None or demonstrations):
        advice = "evaluate it without a written prompt and without demonstrations"
        raise UserError(f"an artifact has its own prompt: {advice}")
    use = _use(lm, task, artifact, prompt or "", max_length)
    rows = _rows(use.task, split)
    counts: dict[str, int] = {}
    if demonstrations:
        given = _rows(use.task, demonstrations)
        shown = scoring.fitting(lm, use.task, rows, given, log, max_length)
        use, counts["demonstrations"] = use._replace(demonstrations=shown), len(shown)
    examples = _encode(lm, rows, use)
    scores = scoring.finite(lm, scoring.score(lm, examples, use.given, log=log))
    if shortened := count_shortened(examples)[0]:
        counts["shortened"] = shortened
    return Scored(scores, np.array([example.answer for example in examples]), counts)


def predict(
    lm: LanguageModel,
    task: Task,
    records: Iterable[Mapping[str, str] | str],
    artifact: Artifact | str | os.PathLike | None = None,
    *,
    generation: Settings = DEFAULTS,
    seed: int = 0,
) -> Iterator[dict[str, Any]]:
    """Labels records as they come, or writes a text for each if the task has a target.

    Args:
      records: the template's fields by name, or a text alone if the template has one field.
      lm, task, artifact, generation, seed: as for `evaluate`.

    Yields:
      label (its value in the data) and probabilities by label; or text and finished, which is
      false if the text was cut off at `max_new_tokens`. In the order of the records. If a record
      was too long: shortened, the number of tokens that its longest field lost.

    Raises:
      UserError: one record instead of several, or a record that is wrong.
    """
    if isinstance(records, str | Mapping) or hasattr(records, "columns"):
        # Otherwise each character, or each name of a field or column, would be a record.
        raise UserError(f"records is one {type(records).__name__}: give a list of records")
    artifact = None if artifact is None else _read(artifact)
    use, calibration = _use(lm, task, artifact), _calibration(task, artifact)
    rows = (_row(use.task, record, number) for number, record in enumerate(records))
    if task.target:
        for example, written in _texts(lm, rows, use, generation, seed):
            yield {"text": written.text, "finished": written.finished, **_shortened(example)}
        return
    values, shape = [value for value, _ in task.labels], None
    lm, given, _ = scoring.spread(lm, use.given)
    while chunk := list(islice(rows, PREDICTED_AT_ONCE)):
        examples = _encode(lm, chunk, use)
        shape = stream_shape(examples, shape, jax.device_count())
        scores = scoring.finite(lm, scoring.score(lm, examples, given, shape=shape))
        scores = scores if calibration is None else calibration.apply(scores)
        for example, row in zip(examples, np.asarray(jax.nn.softmax(scores)), strict=True):
            shares = [round(float(share), 6) for share in row]
            label = values[int(row.argmax())]
            probabilities = dict(zip(values, shares, strict=True))
            yield {"label": label, "probabilities": probabilities, **_shortened(example)}


def save(artifact: Artifact, folder: str | os.PathLike) -> None:
    """Writes an artifact to a folder; an artifact that is there is replaced."""
    save_artifact(_read(artifact), folder)


def encode(lm: LanguageModel, task: Task, rows: Sequence[Record], artifact: Artifact):
    """Returns records as examples for the model with an artifact, and the artifact's `Given`."""
    use = _use(lm, task, artifact)
    return _encode(lm, rows, use), use.given


def held_out(task: Task, config: Any, by: str | None) -> tuple[list[Record], list[Record]]:
    """Returns the validation records that something is chosen by, such as the best of some prompts,
    and those that calibrate. `by` is 'labels', 'texts' or None, see `calibration.KEYS`."""
    labelled, own = by != "texts", config.calibration.split
    choosing = validation_records(task, config.task, labelled)
    parts = halves(choosing) if by == "labels" else (choosing, choosing)
    if own and by:
        parts = choosing, select_records(task, own, labelled)
    if not all(parts):
        one = "no label has two validation records: one calibrates, and none is left to choose by"
        raise UserError(f"{one}; name records that calibrate in config.calibration.split")
    if by == "labels":
        check_labels([record[LABEL] for record in parts[1]], len(task.labels))
    return parts


class _Use(NamedTuple):
    """How the model is used: for a task with the template that it reads, with what adapts it, and
    as `encode_for` says."""

    task: Task
    given: Given
    max_length: int
    demonstrations: Sequence[Record] = ()
    room: int = 0


def _use(lm, task, artifact, prompt="", max_length=0) -> _Use:
    if artifact is None:
        template = with_prompt(task.template, prompt)
        return _Use(task._replace(template=template, continues=False), Given(), max_length)
    artifact = _read(artifact)
    check_artifact(artifact, lm)
    given, manifest = shard(from_tensors(artifact.tensors), lm.layout), artifact.manifest
    check_given(lm.spec, given)
    if given.params and lm.settings.get("quantize"):
        held = "the artifact holds weights of the model itself"
        raise UserError(f"config.model.quantize is 'int8', and {held}: leave it out")
    own = manifest["config"].get("task")  # configs of earlier versions have no such keys
    chat = str(own.get("system", "")) if isinstance(own, dict) and own.get("as_chat") else None
    read = {"template": manifest["template"], "chat": chat}
    task = task._replace(**read, continues=manifest.get("continues", False))
    return _Use(task, given, manifest["max_length"], manifest.get("demonstrations", ()))


def _calibration(task, artifact) -> Calibration | None:
    if artifact is None or "calibration" not in artifact.manifest:
        return None
    if [*map(list, task.labels)] != [*map(list, artifact.manifest["labels"])]:
        raise UserError("the artifact is calibrated for its own labels: leave task.labels empty")
    return Calibration(**artifact.manifest["calibration"])


def _read(artifact) -> Artifact:
    if isinstance(artifact, str | os.PathLike):
        return load_artifact(artifact)
    if not isinstance(artifact, Artifact):
        advice = "give result.artifact of what `tune` returned, or a folder"
        raise UserError(f"the artifact is a {type(artifact).__name__}: {advice}")
    return artifact


def _encode(lm, rows, use):
    how = use.max_length, use.demonstrations, use.room
    return scoring.encode_for(lm, use.task, rows, use.given, *how)


def _texts(lm, rows, use, settings, seed):
    """Yields the example and the generation of each record, as they are asked for."""
    check_settings(settings, seed)
    taken = prefix_length(use.given)
    room = lm.spec.max_positions - taken - settings.max_new_tokens + 1
    if room < 1:
        raise UserError(
            f"generation.max_new_tokens is {settings.max_new_tokens} and the model has"
            f" {lm.spec.max_positions} positions, {taken} of them taken by a prefix: give fewer"
        )
    use = use._replace(room=room)
    end = None if use.task.chat is None else read_chat(lm.tokenizer, use.task.chat).end
    settings = settings._replace(stop=(*settings.stop, end.markup)) if end else settings
    # Without its target, so that the target takes no room.
    outputs = field_names(use.task.target)
    asked = ({k: v for k, v in row.items() if k not in outputs} for row in rows)
    encoded = (example for row in asked for example in _encode(lm, [row], use))
    ahead, behind = tee(encoded)
    yield from zip(behind, generate(lm, ahead, use.given, settings, seed), strict=True)


def _text_metrics(lm, rows, use, settings, seed, log):
    """Returns the metrics of the texts that are written for the distinct inputs of the records."""
    inputs, references = group_by_input(use.task, rows)
    texts = _texts(lm, inputs, use, settings, seed)
    examples, written = zip(*with_progress(texts, "texts written", log, len(inputs)), strict=True)
    unfinished = sum(not each.finished for each in written)
    counts = {"unfinished": unfinished, "texts_shortened": count_shortened(examples)[0]}
    found = {"texts": len(written)} | {name: count for name, count in counts.items() if count}
    texts = [each.text.strip() for each in written]
    return found | metrics.text_metrics(texts, references, use.task.metrics, use.task.tokenizer)


def _shortened(example):
    return {"shortened": example.dropped} if example.dropped else {}


def _rows(task: Task, split: Any) -> Sequence[Record]:
    """Returns the records of a split, or those of a list with texts for numbers."""
    if isinstance(split, str):
        return select_records(task, split)
    rows, outputs = [*split] if isinstance(split, Iterable) else [], output_fields(task)
    if not rows or not all(isinstance(row, Mapping) and {*outputs} <= {*row} for row in rows):
        needed = f"the name of a split, or a list of records with {', '.join(outputs)}"
        raise UserError(f"the records are {short(split, 200)}: expected {needed}")
    names = {*field_names(task.template), *outputs}
    for number, row in enumerate(rows):
        place = row.get(PLACE, f"record {number}")
        texts = {name: require_text(row[name], name, place) for name in names if name in row}
        rows[number] = {PLACE: place, **row, **texts}
    return rows


def _row(task, record, number) -> Record:
    """Returns the fields of a record, and its place; a label is left out."""
    place, fields = f"record {number}", field_names(task.template)
    if isinstance(record, str):
        if len(fields) != 1:
            raise UserError(
                f"the template has the fields {', '.join(fields)}: give each record as a dict with"
                " these fields, not as one text"
            )
        record = {fields[0]: record}
    if not isinstance(record, Mapping):
        raise UserError(
            f"{place} is a {type(record).__name__}: expected a text, or a dict of fields by name"
        )
    record = {plain_name(str(name)): value for name, value in record.items()}
    place = record.get(PLACE, place)
    row = {name: value for name, value in record.items() if task.target or name != LABEL}
    texts = {name: require_text(row[name], name, place) for name in fields if name in row}
    return {**row, PLACE: place, **texts}
