"""Prompt tuning (Lester et al. 2021): P trained vectors stand where the template has `{soft}`.

Departures: float32 vectors over whatever dtype the model has, and the frozen model has no dropout
(the released recipe ran it with 0.1). With `method.dropout` an update reads some vectors as 0. They
stay positions that the model attends to; the dropout of a prefix hides positions.
"""

import jax

from prompt_tuning_jax.config.key import number
from prompt_tuning_jax.methods.base import NOTHING, Given, Method
from prompt_tuning_jax.methods.init import TOKEN_KEYS, first_vectors
from prompt_tuning_jax.models.sites import PROMPT

# The share of the vectors that an update reads as 0.
KEYS = {**TOKEN_KEYS, "dropout": number(0.0, below=1.0)}
HAS_SLOTS = True


def make(settings, start=NOTHING) -> Method:
    """Returns the method for `config.method` and the tensors in its `init_file`."""

    def init(rng, lm, task):
        return {"vectors": first_vectors(rng, settings, lm, task, start)}, {}

    def adapt(trained, fixed, frozen, rng, train):
        vectors = trained["vectors"]
        if train and settings.dropout:
            vectors *= jax.random.bernoulli(rng, 1 - settings.dropout, (len(vectors), 1))
        return Given({PROMPT: vectors})

    return Method(init, adapt)
