"""Optimizers and schedules by name, from optax."""

import optax

from prompt_tuning_jax.errors import UserError


def schedule(config) -> optax.Schedule:
    """Learning rate by step: `schedule.name` after a linear rise over `schedule.warmup_steps`."""
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


def make(config) -> optax.GradientTransformation:
    """The optimizer that `config.optimizer` names; gradients are clipped first where asked."""
    settings, rate = config.optimizer, schedule(config)
    made = {
        "adamw": lambda: optax.adamw(
            rate, settings.b1, settings.b2, weight_decay=settings.weight_decay
        ),
        "adam": lambda: optax.adam(rate, settings.b1, settings.b2),
        "sgd": lambda: optax.sgd(rate, settings.b1),
        # Lester et al. 2021 in optax's terms: 0.3, constant, no parameter scaling, decay_offset
        # -1,100,000 (their step counter went on from T5's own training), weight decay 1e-5.
        "adafactor": lambda: optax.adafactor(
            rate,
            decay_rate=settings.decay_rate,
            decay_offset=settings.decay_offset,
            multiply_by_parameter_scale=settings.multiply_by_parameter_scale,
            clipping_threshold=settings.clipping_threshold or None,
            weight_decay_rate=settings.weight_decay or None,
        ),
    }
    if settings.name not in made:
        raise UserError(f"optimizer.name is '{settings.name}'; it can be {', '.join(made)}.")
    clip = optax.clip_by_global_norm(settings.clip_norm) if settings.clip_norm else optax.identity()
    return optax.chain(clip, made[settings.name]())
