"""IA3 (Liu et al. 2022): trained scales of keys, values and the feed-forward's inner activations.

All scales start at one, so that training begins at the model alone. With `method.targets` other
linear layers have one too: of what they give, or for `feedforward/down` of what it reads.
"""

import jax.numpy as jnp

from prompt_tuning_jax.config.key import strings
from prompt_tuning_jax.methods.base import NOTHING, Given, Method
from prompt_tuning_jax.methods.parts import select_layers

DEFAULTS = {"learning_rate": 0.01}
KEYS = {
    # Linear layers, such as 'attention/q'; '*' is all of them.
    "targets": strings()._replace(default=("attention/k", "attention/v", "feedforward/down")),
}


def make(settings, start=NOTHING) -> Method:
    """Returns the method for `config.method`."""

    def init(rng, lm, task):
        trained = {}
        for layer in select_layers(lm.sites, "scale", settings.targets):
            shape = [lm.sizes[letter] for letter in lm.sites[f"scale/{layer}"].split()]
            trained[layer] = jnp.ones(shape, jnp.float32)
        return trained, {}

    def adapt(trained, fixed, frozen, rng, train):
        return Given({f"scale/{layer}": leaf for layer, leaf in trained.items()})

    return Method(init, adapt)
