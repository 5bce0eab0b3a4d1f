"""The real data, BBC headlines as `train` reads them, and an adaptation's accuracy on them."""

from collections.abc import Sequence
from typing import Any

import inputs
import jax
import numpy as np

from prompt_tuning_jax.config import load as load_config
from prompt_tuning_jax.data.batch import batch_indices, make_order
from prompt_tuning_jax.data.example import Example
from prompt_tuning_jax.data.task import (
    make_task,
    select_records,
    training_records,
    validation_records,
)
from prompt_tuning_jax.methods import METHODS
from prompt_tuning_jax.models.language_model import LanguageModel, load
from prompt_tuning_jax.models.sites import Given, from_tensors
from prompt_tuning_jax.run.artifact import check_artifact, load_artifact
from prompt_tuning_jax.score import encode_for, loss_and_accuracy, score


def settings(path: str | None = None, overrides: Sequence[str] = ()) -> Any:
    """Reads a config file, or the defaults: the headlines and a soft prompt."""
    return load_config(path, [f"--config.{each}" for each in overrides])


def model(config: Any) -> LanguageModel:
    """Loads the frozen model that the config names."""
    return load(config.model)


def dtype(lm: LanguageModel) -> str:
    """Returns the name of the frozen model's dtype."""
    return str(jax.tree.leaves(lm.params)[0].dtype)


def examples(config: Any, lm: LanguageModel, given: Given, split: str) -> list[Example]:
    """Returns a split of the config's task as tokens, with all answers, for what is given: of train
    and validation the records that a run reads."""
    if config.method.get("init") == "demonstrations":
        raise SystemExit(
            "the other side cannot start from demonstrations: give another method.init"
        )
    task = make_task(config.task)
    drawn = {"train": training_records, "validation": validation_records}
    rows = (
        drawn[split](task, config.task)
        if split in drawn
        else select_records(task, config.task.test)
    )
    return encode_for(lm, task, rows, given, config.task.max_length)


def updates(config: Any, made: Sequence[Example], count: int) -> list[list[inputs.Case]]:
    """Returns the first `count` updates of a run with this config, in its order."""
    sequence, cases = make_order(len(made), config.seed), answered(made)
    return [
        [cases[index] for index in batch_indices(sequence, step, config.batch_size)]
        for step in range(count)
    ]


def answered(made: Sequence[Example]) -> list[inputs.Case]:
    """Returns the examples with their right answers."""
    return [inputs.case(each) for each in made]


def questions(made: Sequence[Example]) -> tuple[list[inputs.Case], list[tuple[int, ...]]]:
    """Returns the examples without their answers, and the tokens of each answer.

    Raises ValueError if an answer's tokens differ between examples.
    """
    answers = {tuple(map(tuple, (tail.tolist() for tail in each.tails))) for each in made}
    if len(answers) != 1:
        raise ValueError("the answers' tokens differ between examples")
    return [inputs.case(each, answered=False) for each in made], list(*answers)


def first(config: Any, lm: LanguageModel, artifact: str | None = None) -> Given:
    """Returns what an artifact gives the model, or what a run with this config begins with."""
    if artifact:
        kept = load_artifact(artifact)
        check_artifact(kept, lm)
        return from_tensors(kept.tensors)
    method = METHODS[config.method.name].make(config.method)
    trained, fixed = method.init(jax.random.key(config.seed), lm, make_task(config.task))
    return jax.device_get(method.adapt(trained, fixed, lm.params, jax.random.key(0), False))


def accuracies(config: Any, lm: LanguageModel, given: Given) -> dict[str, Any]:
    """Returns the accuracy of an adaptation on validation and test, its validation loss, and for
    each test example 1 if it is right, else 0, as a text."""
    result: dict[str, Any] = {}
    for split in ("validation", "test"):
        made = examples(config, lm, given, split)
        scores, answers = score(lm, made, given), np.array([each.answer for each in made])
        found = loss_and_accuracy(scores, answers)
        result[f"{split}_accuracy"] = found["accuracy"]
        if split == "validation":
            result["validation_loss"] = found["loss"]
    result["test_right"] = "".join(map(str, (scores.argmax(axis=1) == answers).astype(int)))
    return result
