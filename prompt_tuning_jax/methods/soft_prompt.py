"""Prompt tuning (Lester et al. 2021): P trained vectors stand where the template has `{soft}`.

Departures: float32 vectors over whatever dtype the model has, and the frozen model has no dropout
(the released recipe ran it with 0.1).
"""

from prompt_tuning_jax.methods.base import NOTHING, Given, Method
from prompt_tuning_jax.methods.init import TOKEN_KEYS, first_vectors
from prompt_tuning_jax.models.sites import PROMPT

KEYS = TOKEN_KEYS
HAS_SLOTS = True


def make(settings, start=NOTHING) -> Method:
    """Returns the method for `config.method` and the tensors in its `init_file`."""

    def init(rng, lm, task):
        return {"vectors": first_vectors(rng, settings, lm, task, start)}, {}

    def adapt(trained, fixed, frozen, rng, train):
        return Given({PROMPT: trained["vectors"]})

    return Method(init, adapt)
