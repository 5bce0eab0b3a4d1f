"""The data of a run: its examples as tokens, and the batch of each update."""

import bisect
import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from prompt_tuning_jax.data import batch as batching
from prompt_tuning_jax.data.demonstrations import spare_half, unscored, without_demonstrations
from prompt_tuning_jax.data.encode import count_shortened
from prompt_tuning_jax.data.records import LABEL
from prompt_tuning_jax.data.task import Task, make_task, training_records, validation_records
from prompt_tuning_jax.data.template import field_names
from prompt_tuning_jax.errors import UserError, short
from prompt_tuning_jax.methods import METHODS
from prompt_tuning_jax.models.language_model import LanguageModel
from prompt_tuning_jax.models.sites import NOTHING, PROMPT, Given
from prompt_tuning_jax.run import warnings
from prompt_tuning_jax.run.artifact import load_artifact
from prompt_tuning_jax.run.progress import with_progress
from prompt_tuning_jax.score import ANY_LENGTH, encode_for
from prompt_tuning_jax.teacher import demonstrations_of, is_taught, label_shares, written_targets


class Data(NamedTuple):
    """The examples to train on and to validate with, and the plan of all batches."""

    train: list
    validation: list
    shared: int
    planned: np.ndarray  # int64[steps, B], the examples of each update
    shapes: tuple
    labels: tuple
    # The teacher's probabilities of each label, float32[N, C] of both; None without a teacher.
    train_shares: Any = None
    validation_shares: Any = None

    def batch(self, step: int):
        """Returns the numpy batch of update `step`, counted from 0; it depends on nothing else."""
        places, shares = self.planned[step], self.train_shares
        chosen = [self.train[index] for index in places]
        batch = batching.pack_batch(chosen, self.shared, self.shapes, ranked=shares is not None)
        if shares is None:
            return batch
        weights = batch.target_weights * shares[places].ravel()[batch.target_example]
        return batch._replace(target_weights=weights)

    def fingerprint(self) -> str:
        """Returns a hex digest of the examples as the model reads them, and of the labels."""
        digest = hashlib.sha256(repr(self.labels).encode(errors="backslashreplace"))
        for examples in (self.train, self.validation):
            digest.update(b"%d" % len(examples))
            for example in examples:
                parts = example.trunk, *example.tails
                digest.update(repr((example.answer, *map(len, parts))).encode())
                digest.update(b"".join(part.tobytes() for part in parts))
        return digest.hexdigest()


def check_task(task, config) -> None:
    """Raises a UserError if a config describes another task, as an artifact would name that one."""
    # If the config lists no labels, the task's are taken, and no data is read again.
    stated = make_task(config.task, () if config.task.labels else task.labels)
    for name in ("name", "template", "target", "labels", "metrics", "chat"):
        if (given := getattr(task, name)) != (described := getattr(stated, name)):
            raise UserError(
                f"the task's {name} is {short(given)}, and config.task describes"
                f" {short(described)}: give make_task(config.task)"
            )


def start_from_demonstrations(lm: LanguageModel, task, config, log: Callable) -> tuple[Task, Any]:
    """Returns the task with the tokens that `method.init=demonstrations` begins with, and their
    demonstrations: as many training records as fit into `num_virtual_tokens`. Raises a UserError if
    none fits, or if a text has other tokens behind virtual tokens than behind demonstrations."""
    if (init := config.method.get("init")) != "demonstrations":
        is_artifact = init == "file" and not config.method.init_file.endswith(".npy")
        kept = load_artifact(config.method.init_file).manifest if is_artifact else {}
        return task._replace(continues=kept.get("continues", False)), []
    rows, most = unscored(task, config, "method.init"), config.method.num_virtual_tokens
    spare = spare_half(rows, balanced=bool(task.labels), seed=config.seed)
    behind = task._replace(continues=True)
    [alone] = encode_for(lm, behind, rows[:1], NOTHING, ANY_LENGTH)

    def in_context(count):
        return encode_for(lm, task, rows[:1], NOTHING, ANY_LENGTH, spare[:count])[0]

    def tokens(count):
        return len(in_context(count).trunk) - len(alone.trunk)

    count = bisect.bisect_right(range(1, len(spare) + 1), most, key=tokens)
    wanted, size, shown = "config.method.init is 'demonstrations'", tokens(count), in_context(count)
    if not count:
        least = f"at least {tokens(1)}, or more data" if spare else "two records of a label"
        raise UserError(
            f"{wanted} and none of {len(spare)} records (half of each label) fits into"
            f" config.method.num_virtual_tokens, {most}: give {least}"
        )
    slots = size if getattr(METHODS[config.method.name], "HAS_SLOTS", False) else 0
    given = Given({PROMPT: jax.numpy.empty((slots, 1))} if slots else {})
    [example] = encode_for(lm, behind, rows[:1], given, ANY_LENGTH)
    texts = [*(-1 - np.arange(slots)), *shown.trunk[size:]], *map(list, shown.tails)
    if ([*example.trunk], *map(list, example.tails)) != texts:
        raise UserError(
            f"{wanted}, and the template {short(task.template, 200)} becomes other tokens behind"
            " virtual tokens than behind demonstrations: begin it with {soft}, without BOS or"
            " as_chat, or give another init or model"
        )
    log(
        f"the {size} virtual tokens begin as {count} demonstrations;"
        f" at most {len(spare)} of {len(rows)} training records may be taken"
    )
    return behind._replace(front=tuple(shown.trunk[:size].tolist())), spare[:count]


def prepare(
    lm: LanguageModel, task, config, given: Given, log: Callable, shown=(), devices=1
) -> Data:
    """Reads and tokenises both splits, and chooses the shapes of the batches, for so many devices.
    Only the shapes of `given` are read; the demonstrations `shown` are not trained on."""
    for note in task.load().notes:
        log(note)
    rows = training_records(task, config.task, not is_taught(config))
    taught = demonstrations_of(lm, task, config, log)
    shown = [*shown, *taught]
    rows = without_demonstrations(rows, shown, field_names(task.template))
    held_out = validation_records(task, config.task, not is_taught(config))
    shares: tuple = (None, None)
    if is_taught(config):
        log("the teacher answers the records to train on and to validate with")
        if task.target:
            _, rows = written_targets(lm, task, rows, config, taught, log)
            task, held_out = written_targets(lm, task, held_out, config, taught, log)
        else:
            both = rows, held_out
            shares = tuple(label_shares(lm, task, part, config, taught, log) for part in both)
            rows = [{name: row[name] for name in row if name != LABEL} for row in rows]
    most = config.task.max_length
    train, validation = (encode_for(lm, task, part, given, most) for part in (rows, held_out))
    order = batching.make_order(len(train), config.seed)
    steps = with_progress(range(config.steps), "updates planned", log, config.steps)
    planned = np.stack([batching.batch_indices(order, step, config.batch_size) for step in steps])
    shared = batching.shared_length(train)
    ranked, multiple = shares[0] is not None, devices * config.microbatches
    shapes = batching.plan_shapes(train, planned, shared, ranked=ranked, row_multiple=multiple)
    log(
        f"{len(train)} examples to train on, {len(validation)} to validate; an update has {shared}"
        f" shared positions and {' or '.join(f'{s.rows} rows of {s.length}' for s in shapes)}"
    )
    for name, examples in (("training", train), ("validation", validation)):
        shortened, tokens = count_shortened(examples)
        if shortened:
            log(
                f"warning: {shortened} {name} examples were too long and lost {tokens} tokens: "
                "raise task.max_length if the model has more positions, or shorten the template"
            )
    known = [*rows, *shown]
    for warning in (
        warnings.trained_on(held_out, known, field_names(task.template), config.task.validation),
        warnings.empty_texts(rows, field_names(task.template), config.task.train),
        warnings.empty_texts(held_out, field_names(task.template), config.task.validation),
        warnings.look_alike(task.labels),
        warnings.repeated(config.batch_size, len(train)),
        *warnings.same_beginning(task.labels, train[0].tails),
    ):
        if warning:
            log(f"warning: {warning}")
    return Data(train, validation, shared, planned, shapes, task.labels, *shares)
