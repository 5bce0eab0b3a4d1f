"""Distillation: the frozen model with a long prompt, written or of demonstrations, is the teacher
of what is trained. It answers the records once, and their own answers are not read.

With labels, all their words are targets, weighted with the teacher's probabilities among the labels
(which add up to one: else an example whose labels are all unlikely would count less). The loss is
the cross-entropy in the whole vocabulary, as in usual training, so that it learns to answer with a
label too. With a target, the likeliest text of the teacher takes its place.
"""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from prompt_tuning_jax import score as scoring
from prompt_tuning_jax.config.key import string, whole
from prompt_tuning_jax.data import task as tasks
from prompt_tuning_jax.data.chat import read_chat
from prompt_tuning_jax.data.demonstrations import training_demonstrations, without_demonstrations
from prompt_tuning_jax.data.encode import count_shortened
from prompt_tuning_jax.data.records import Record
from prompt_tuning_jax.data.task import Task, output_fields, training_records
from prompt_tuning_jax.data.template import field_names, with_prompt
from prompt_tuning_jax.errors import UserError
from prompt_tuning_jax.generate import Settings, generate
from prompt_tuning_jax.models.sites import NOTHING
from prompt_tuning_jax.run.progress import with_progress

KEYS = {
    # A written prompt, as in `evaluate --prompt`.
    "prompt": string(""),
    # Training records in front of each example, not trained on. With 0 and no prompt: no teacher.
    "demonstrations": whole(0),
}
KEY = "teacher.demonstrations"
WRITTEN = "text_of_the_teacher"  # the field of a record


def is_taught(config: Any) -> bool:
    """Tells whether a config has a teacher."""
    return bool(config.teacher.prompt or config.teacher.demonstrations)


def demonstrations_of(lm, task: Task, config: Any, log) -> Sequence[Mapping[str, str]]:
    """Returns the teacher's demonstrations, as many as fit in front of the records of all splits:
    training, validation and the report have the same teacher."""
    if not config.teacher.demonstrations:
        return []
    shown = training_demonstrations(task, config, [config.teacher.prompt], KEY)
    rows = training_records(task, config.task, labelled=False)
    rows += tasks.validation_records(task, config.task, labelled=False)
    with contextlib.suppress(UserError):  # there may be no test split
        rows += tasks.select_records(task, config.task.test)
    task, asked, most, room = _question(lm, task, rows, config)
    return scoring.fitting(lm, task, asked, shown, log, most, room, KEY)


def check_teacher(lm, task: Task, config) -> None:
    """Raises a UserError if there is a teacher that cannot read the first record to train on, or
    whose demonstrations do not fit."""
    if is_taught(config):
        rows, log = training_records(task, config.task, labelled=False), lambda line: None
        shown = demonstrations_of(lm, task, config, log)
        rows = without_demonstrations(rows, shown, field_names(task.template))
        _ask(lm, task, rows[:1], config, shown, log)


def label_shares(lm, task: Task, rows, config, shown, log) -> np.ndarray:
    """Returns float32[N, C], the teacher's probability of each label for each record, behind the
    demonstrations `shown`."""
    scores = scoring.score(lm, _ask(lm, task, rows, config, shown, log), NOTHING, log=log)
    return np.asarray(jax.nn.softmax(scoring.finite(lm, scores)))


def written_targets(lm, task: Task, rows, config, shown, log) -> tuple[Task, list[Record]]:
    """Returns the task whose target is the teacher's text, and the records with their texts. Those
    whose text is empty or does not end are left out, and counted."""
    settings = Settings(**config.generation)._replace(temperature=0.0, top_k=0, top_p=1.0)
    end = None if task.chat is None else read_chat(lm.tokenizer, task.chat).end
    settings = settings._replace(stop=(*settings.stop, end.markup)) if end else settings
    texts = generate(lm, _ask(lm, task, rows, config, shown, log), NOTHING, settings)
    texts = with_progress(texts, "texts written", log, len(rows))
    made = [(row, each.text.strip(), each.finished) for row, each in zip(rows, texts, strict=True)]
    kept = [{**row, WRITTEN: text} for row, text, finished in made if finished and text]
    if not kept:
        raise UserError(
            f"the teacher ends none of {len(rows)} texts: raise config.generation.max_new_tokens"
            f" from {settings.max_new_tokens}, or give config.generation.stop"
        )
    if left_out := len(rows) - len(kept):
        why = "the teacher's text is empty or does not end"
        log(f"warning: {left_out} of {len(rows)} records are left out: {why}")
    return task._replace(target=f"{{{WRITTEN}}}"), kept


def _ask(lm, task, rows, config, shown, log):
    """Returns the records, without their answers, as the teacher's examples."""
    task, asked, most, room = _question(lm, task, rows, config)
    examples = scoring.encode_for(lm, task, asked, NOTHING, most, shown, room)
    if count := count_shortened(examples)[0]:
        log(f"warning: teacher: {count} of {len(rows)} records were too long and lost their end")
    return examples


def _question(lm, task, rows, config) -> tuple[Task, list[Record], int, int]:
    """Returns the task as the teacher reads it, the records without their answers, and the most
    positions of one without and with demonstrations, see `encode_for`."""
    template, outputs = with_prompt(task.template, config.teacher.prompt), output_fields(task)
    asked = [{name: text for name, text in row.items() if name not in outputs} for row in rows]
    written = config.generation.max_new_tokens - 1 if task.target else 0
    if written >= lm.spec.max_positions - 1:
        given = f"config.generation.max_new_tokens is {written + 1}"
        raise UserError(f"{given} and the model has {lm.spec.max_positions} positions: give fewer")
    most = config.task.max_length, lm.spec.max_positions - written
    return task._replace(template=template, continues=False), asked, *most
