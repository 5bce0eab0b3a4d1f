"""The real data: BBC headlines as `train` reads them."""

from collections.abc import Sequence
from typing import Any

import inputs

from prompt_tuning_jax import config as configs
from prompt_tuning_jax.data import task as tasks
from prompt_tuning_jax.data.batch import order, take
from prompt_tuning_jax.data.template import Example
from prompt_tuning_jax.models import tokenizer


def settings(path: str | None = None, overrides: Sequence[str] = ()) -> Any:
    """A config file, or the defaults, which are the headlines and a soft prompt."""
    return configs.load(path, [f"--config.{each}" for each in overrides])


def examples(config: Any, split: str) -> list[Example]:
    """A split of the config's task as tokens, all answers with it."""
    reader = tokenizer.read(config.model.path)
    task = tasks.make(config.task)
    return tasks.examples(
        task,
        tasks.records(task, getattr(config.task, split)),
        reader,
        num_virtual_tokens=config.method.num_virtual_tokens,
        add_bos=reader.add_bos,
        # Headlines are short: no model's limit is near.
        max_length=config.task.max_length or 2048,
    )


def updates(config: Any, made: Sequence[Example], count: int) -> list[list[inputs.Case]]:
    """The first `count` updates of a run with this config, in its order."""
    sequence, slots = order(len(made), config.seed), config.method.num_virtual_tokens
    return [
        [inputs.case(made[index], slots) for index in take(sequence, step, config.batch_size)]
        for step in range(count)
    ]
