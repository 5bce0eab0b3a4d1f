"""Optimizers and schedules by name, from optax."""

import functools
import inspect
import math

import optax

from prompt_tuning_jax.config.key import Key, among, number, switch, whole

# Functions of optax that take the learning rate first. Their keyword arguments that have a number,
# true or false as default are keys of `config.optimizer`.
OPTIMIZERS = ("adamw", "adam", "sgd", "adafactor", "lamb", "lion", "nadam", "radam", "rmsprop")
# What differs from optax: prompts are not decayed unless a config asks for it. Lester et al. 2021
# have adafactor with a constant learning_rate of 0.3, clip_norm 0, weight_decay_rate 1e-5, and
# decay_offset -1,100,000, as their step counter went on from T5's own training.
_OURS = {
    "adafactor": {
        # Above 0 its first steps have a decay that is not a number.
        "decay_offset": Key(0, "a whole number of at most 0", lambda value: value <= 0),
        "multiply_by_parameter_scale": switch(False),
        "weight_decay_rate": number(0.0),
    },
    "adamw": {"weight_decay": number(0.0)},
    "lion": {"weight_decay": number(0.0)},
    "sgd": {"momentum": number(0.9, below=1.0)},
}
_NONE_AT_ZERO = ("clipping_threshold", "weight_decay_rate")
_BELOW_ONE = ("b1", "b2", "decay")  # of a running mean
# Names of earlier versions.
RENAMED = {
    "adafactor": {"optimizer.weight_decay": "optimizer.weight_decay_rate"},
    "sgd": {"optimizer.b1": "optimizer.momentum"},
}

KEYS = {
    "name": among("adamw", OPTIMIZERS),
    # The largest global norm of the gradient; 0: it is not clipped.
    "clip_norm": number(1.0),
}
SCHEDULE_KEYS = {
    "name": among("cosine", ("constant", "cosine", "linear")),
    # How many of the first steps the learning rate rises in, in a straight line.
    "warmup_steps": whole(20),
}


@functools.cache
def own_keys(name: str) -> dict[str, Key]:
    """Returns the keys of `config.optimizer` that one of `OPTIMIZERS` has of its own."""
    keys = {}
    for argument, parameter in inspect.signature(getattr(optax, name)).parameters.items():
        default = parameter.default
        if isinstance(default, bool):
            keys[argument] = switch(default)
        elif isinstance(default, int):
            keys[argument] = whole(default)
        elif isinstance(default, float):
            keys[argument] = number(default, below=1.0 if argument in _BELOW_ONE else math.inf)
    return keys | _OURS.get(name, {})


def make_schedule(config) -> optax.Schedule:
    """Returns the learning rate by step: a linear rise, then what `config.schedule` names."""
    warmup = config.schedule.warmup_steps
    rest = max(config.steps - warmup, 1)
    after = {
        "constant": optax.constant_schedule(config.learning_rate),
        "cosine": optax.cosine_decay_schedule(config.learning_rate, rest),
        "linear": optax.linear_schedule(config.learning_rate, 0.0, rest),
    }
    # The first step is already worth something: the rise starts at 1/(warmup + 1), not at 0.
    rise = optax.linear_schedule(config.learning_rate / (warmup + 1), config.learning_rate, warmup)
    return optax.join_schedules([rise, after[config.schedule.name]], [warmup])


def make_optimizer(config) -> optax.GradientTransformation:
    """Returns the optimizer that `config.optimizer` describes, behind the clipping of gradients."""
    settings = config.optimizer
    given = {name: settings[name] for name in own_keys(settings.name)}
    given |= {name: None for name in _NONE_AT_ZERO if given.get(name) == 0}
    clip = optax.clip_by_global_norm(settings.clip_norm) if settings.clip_norm else optax.identity()
    return optax.chain(clip, getattr(optax, settings.name)(make_schedule(config), **given))
