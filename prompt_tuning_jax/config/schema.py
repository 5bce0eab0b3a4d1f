"""The keys of a config: of each its default, what is expected of a value, and what it means.

Imports nothing that takes time, so that a fault is reported at once.
"""

import math
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from prompt_tuning_jax.data import settings
from prompt_tuning_jax.methods import METHODS

# The keys of `config.optimizer` that each optimizer reads, beside `name` and `clip_norm`.
OPTIMIZERS: dict[str, tuple[str, ...]] = {
    "adafactor": (
        "weight_decay",
        "decay_rate",
        "decay_offset",
        "multiply_by_parameter_scale",
        "clipping_threshold",
    ),
    "adam": ("b1", "b2"),
    "adamw": ("b1", "b2", "weight_decay"),
    "sgd": ("b1",),
}
SCHEDULES = ("constant", "cosine", "linear")


class Key(NamedTuple):
    """A key of a config. The type of its default is the type of its values."""

    default: Any
    expected: str
    holds: Callable[[Any], bool]
    names: Collection[str] = ()


def _whole(default: int, least: int) -> Key:
    return Key(default, f"a whole number of at least {least}", lambda value: value >= least)


def _number(default: float, least: float = 0.0, below: float = math.inf) -> Key:
    limit = "" if below == math.inf else f" and below {below:g}"
    return Key(
        default,
        f"a number of at least {least:g}{limit}",
        lambda value: least <= value < below,
    )


def _among(default: str, names: Collection[str]) -> Key:
    # Not a copy: a notebook may add a line of its own to a table of names.
    return Key(
        default, f"one of {', '.join(map(repr, names))}", lambda value: value in names, names
    )


def _switch(default: bool) -> Key:
    return Key(default, "true or false", lambda value: True)


def _text(default: str, least: int = 0) -> Key:
    expected = "a text that is not empty" if least else "a text"
    return Key(default, expected, lambda value: len(value) >= least)


def _texts(default: tuple[str, ...], least: int = 0) -> Key:
    number = f"at least {least} " if least else ""
    return Key(
        default,
        f"{number}texts, none of them empty, as ('first', 'second')",
        lambda value: len(value) >= least and all(type(item) is str and item for item in value),
    )


def _part(default: float) -> Key:
    return Key(
        default,
        "a share above 0 and below 1, or a whole number of records",
        lambda value: 0 < value < 1 or (value >= 1 and value.is_integer()),
    )


KEYS: dict[str, Key] = {
    "seed": Key(0, "a whole number from 0 to 4294967295", lambda value: 0 <= value < 2**32),
    "steps": _whole(200, 1),
    # Examples in an update, exactly; `microbatches` parts of it are in memory one after the other.
    "batch_size": _whole(16, 1),
    "microbatches": _whole(1, 1),
    "learning_rate": Key(
        0.02, "a number above 0", lambda value: value > 0.0 and math.isfinite(value)
    ),
    "parallel": _among("jit", ("jit", "pmap")),
    # Every so many steps; 0 is only at the end.
    "evaluate_every": _whole(50, 0),
    "save_every": _whole(50, 0),
    "log_every": _whole(10, 1),
    # Validations in a row without a better loss, after which a run ends; 0 is never.
    "early_stopping": _whole(0, 0),
    # Steps to trace with jax's profiler; 0 is none.
    "profile_steps": _whole(0, 0),
    # Where metrics go beside the run folder: a package that is installed, or '' for nowhere.
    "tracker": _among("", ("", "wandb", "trackio")),
    "optimizer.name": _among("adamw", OPTIMIZERS),
    "optimizer.weight_decay": _number(0.0),
    # The largest global norm of the gradient; 0 is no clipping.
    "optimizer.clip_norm": _number(1.0),
    # Adam's decay of the first and the second moment; b1 is also the momentum of sgd.
    "optimizer.b1": _number(0.9, below=1.0),
    "optimizer.b2": _number(0.999, below=1.0),
    # Adafactor's, as optax names them; above 0 its first steps have no decay that is a number.
    "optimizer.decay_rate": _number(0.8),
    "optimizer.decay_offset": Key(0, "a whole number of at most 0", lambda value: value <= 0),
    "optimizer.multiply_by_parameter_scale": _switch(False),
    "optimizer.clipping_threshold": _number(1.0),  # 0: none
    # The warm-up is the first part of `steps`, or all of them, and rises in a straight line.
    "schedule.name": _among("cosine", SCHEDULES),
    "schedule.warmup_steps": _whole(20, 0),
    # An embedded model's name, a GGUF file or a Hugging Face folder.
    "model.path": _text("smollm2-135m-instruct", least=1),
    # 'auto' is float32 on a CPU and bfloat16 elsewhere.
    "model.dtype": _among("auto", ("auto", "float32", "bfloat16", "float16")),
    # Of matrix products; '' is the platform's default.
    "model.matmul_precision": _among("highest", ("", "default", "high", "highest")),
    # What the backward pass keeps: the names in models/decoder.py.
    "model.remat": _among("named", ("named", "full", "none")),
    "method.name": _among(next(iter(METHODS)), METHODS),
    "method.num_virtual_tokens": _whole(16, 1),
    "method.init": _text("vocabulary", least=1),
    # The half-width of 'uniform', the deviation of 'random'.
    "method.init_scale": _number(0.5),
    "method.init_text": _text(""),
    # Sample from the first n tokens of the vocabulary only; 0 is all of it.
    "method.init_vocabulary": _whole(0, 0),
    "method.init_file": _text(""),
    # Width of the network that a method trains and then leaves out; 0 is the method's own choice.
    "method.hidden_size": _whole(0, 0),
    "task.name": _text("bbc_news", least=1),
    "task.split_seed": _whole(0, 0),
    "task.train": _text("train", least=1),
    "task.validation": _text("validation", least=1),
    "task.test": _text("test", least=1),
    "task.template": _text("{soft}Headline: {text}\nTopic:", least=1),
    # 'value' as it stands in the data, or 'value=word' where the model reads another word; () takes
    # the values that the training split has.
    "task.labels": Key(
        (),
        "at least two texts, none of them empty, as ('first', 'second'), or ()",
        lambda value: len(value) != 1 and all(type(item) is str and item for item in value),
    ),
    # Instead of labels: the text to write, a template over fields such as '{summary}'.
    "task.target": _text(""),
    # () is accuracy with labels, all that there are with a target.
    "task.metrics": _texts(()),
    # So many training examples of each label, drawn by `split_seed`; 0 is all there are.
    "task.examples_per_class": _whole(0, 0),
    # 'field=column' where the data has another name than the template; the label's field is
    # `label`. A column without a name has its number, from 1. Of several columns for a field the
    # first that a file has counts.
    "task.columns": Key(
        (),
        "texts 'field=column', as ('text=sentence', 'label=2')",
        lambda value: all(type(item) is str and settings.column(item) for item in value),
    ),
    # Where TensorFlow Datasets keeps what it prepared; '' is its own default.
    "task.data_dir": _text(""),
    # .jsonl, .csv or .tsv. What is not given of validation and test is a part of the training file.
    "task.files.train": _text(""),
    "task.files.validation": _text(""),
    "task.files.test": _text(""),
    "task.files.validation_part": _part(0.1),
    "task.files.test_part": _part(0.1),
    # '' goes by the file's ending. Quotes mean something unless the delimiter is a tab.
    "task.files.delimiter": _text(""),
    # Whether the first line names the columns.
    "task.files.header": _switch(True),
    # Tokens in an example; 0 is as many as the model has positions.
    "task.max_length": _whole(0, 0),
    # What a task with a target writes: at most so many tokens a text, drawn at a temperature (0
    # takes the likeliest) from the `top_k` likeliest (0 is all) and of these from as many of the
    # likeliest as have the share `top_p`, until one of the strings `stop` comes, which is left out.
    "generation.max_new_tokens": _whole(64, 1),
    "generation.temperature": Key(
        0.0,
        "0, or a number of at least 0.001",
        lambda value: value == 0 or (value >= 0.001 and math.isfinite(value)),
    ),
    "generation.top_k": _whole(0, 0),
    "generation.top_p": Key(1.0, "a number above 0 and at most 1", lambda value: 0 < value <= 1),
    "generation.stop": _texts(()),
    # Texts that are written at once.
    "generation.batch_size": _whole(16, 1),
    # Hand-written templates that the report compares the trained prompt with.
    "prompts": _texts(()),
}
