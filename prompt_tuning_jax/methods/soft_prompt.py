"""Prompt tuning (Lester et al. 2021): P trained vectors stand where the template has `{soft}`.

Departures: float32 vectors over whatever dtype the model has, and the frozen model has no dropout
(the released recipe ran it with 0.1).
"""

from prompt_tuning_jax.errors import UserError, nearest
from prompt_tuning_jax.methods.base import Method
from prompt_tuning_jax.methods.init import INITS


def make(settings) -> Method:
    """The method for `config.method`: num_virtual_tokens, init and what that init reads."""
    if settings.init not in INITS:
        raise UserError(
            f"config.method.init is '{settings.init}': expected one of {', '.join(INITS)}"
            f"{nearest(settings.init, INITS)}."
        )
    if settings.num_virtual_tokens < 1:
        raise UserError("config.method.num_virtual_tokens is 0: a soft prompt needs at least 1.")

    def init(rng, lm, task):
        return {"vectors": INITS[settings.init](rng, settings, lm, task)}

    def adapt(trainable, rng, train):
        return {"prompt": trainable}

    return Method(init, adapt)
