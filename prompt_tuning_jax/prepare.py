"""The data of a run: its examples as tokens, and the batch of each update."""

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from prompt_tuning_jax.data.batch import (
    batch_indices,
    make_order,
    pack_batch,
    plan_shapes,
    shared_length,
)
from prompt_tuning_jax.data.encode import count_shortened
from prompt_tuning_jax.data.task import make_task, training_records, validation_records
from prompt_tuning_jax.data.template import field_names
from prompt_tuning_jax.errors import UserError, short
from prompt_tuning_jax.models.language_model import LanguageModel
from prompt_tuning_jax.models.sites import Given
from prompt_tuning_jax.run import warnings
from prompt_tuning_jax.run.progress import with_progress
from prompt_tuning_jax.score import encode_for


class Data(NamedTuple):
    """The examples to train on and to validate with, and the plan of all batches."""

    train: list
    validation: list
    shared: int
    order: Any
    shapes: tuple
    batch_size: int
    labels: tuple

    def batch(self, step: int):
        """Returns the numpy batch of update `step`, counted from 0; it depends on nothing else."""
        chosen = [self.train[index] for index in batch_indices(self.order, step, self.batch_size)]
        return pack_batch(chosen, self.shared, self.shapes, ranked=False)

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
    """Raises a UserError if a config describes another task: the artifact would state that one."""
    # If the config lists no labels, the task's are taken, and no data is read again.
    stated = make_task(config.task, () if config.task.labels else task.labels)
    for name in ("name", "template", "target", "labels", "metrics", "chat"):
        if (given := getattr(task, name)) != (described := getattr(stated, name)):
            raise UserError(
                f"the task's {name} is {short(given)}, and config.task describes"
                f" {short(described)}: give make_task(config.task)"
            )


def prepare(lm: LanguageModel, task, config, given: Given, log: Callable) -> Data:
    """Reads and tokenises both splits, and chooses the shapes of the batches. Of what is given only
    the shapes count."""
    for note in task.load().notes:
        log(note)
    rows = training_records(task, config.task)
    held_out = validation_records(task, config.task)
    train, validation = (
        encode_for(lm, task, split, given, config.task.max_length) for split in (rows, held_out)
    )
    order = make_order(len(train), config.seed)
    steps = with_progress(range(config.steps), "updates planned", log, config.steps)
    planned = np.stack([batch_indices(order, step, config.batch_size) for step in steps])
    shared = shared_length(train)
    shapes = plan_shapes(
        train, planned, shared, row_multiple=jax.device_count() * config.microbatches
    )
    log(
        f"{len(train)} examples to train on, {len(validation)} to validate; {shared} shared "
        f"positions and {' or '.join(f'{s.rows} x {s.length}' for s in shapes)} in rows an update"
    )
    for name, examples in (("training", train), ("validation", validation)):
        shortened, tokens = count_shortened(examples)
        if shortened:
            log(
                f"warning: {shortened} {name} examples were too long and lost {tokens} tokens: "
                "raise task.max_length if the model has more positions, or shorten the template"
            )
    for warning in (
        warnings.trained_on(held_out, rows, field_names(task.template), config.task.validation),
        warnings.empty_texts(rows, field_names(task.template), config.task.train),
        warnings.empty_texts(held_out, field_names(task.template), config.task.validation),
        warnings.look_alike(task.labels),
        warnings.repeated(config.batch_size, len(train)),
        *warnings.same_beginning(task.labels, train[0].tails),
    ):
        if warning:
            log(f"warning: {warning}")
    return Data(train, validation, shared, order, shapes, config.batch_size, task.labels)
