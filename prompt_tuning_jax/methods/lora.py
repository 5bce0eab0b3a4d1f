"""LoRA (Hu et al. 2021): low-rank matrices whose product is added to a frozen one, W + scale * B A.

A is drawn as PyTorch draws a linear layer and B starts at zero, so that training begins at the
model alone. The scale is alpha / rank, or alpha / sqrt(rank) if it is rank-stabilised
(Kalajdzievski 2023); what the model is handed has it in B.

Departure: dropout leaves out columns of A's input in each layer, the same for all examples of an
update and not drawn anew for each position.
"""

import math

import jax
import jax.numpy as jnp

from prompt_tuning_jax.config.key import number, strings, switch, whole
from prompt_tuning_jax.methods.base import NOTHING, Given, Method
from prompt_tuning_jax.methods.parts import select_layers

# About ten times the rate of fine-tuning, as "LoRA without regret" (Schulman et al. 2025) advises.
DEFAULTS = {"learning_rate": 0.001}
KEYS = {
    # Linear layers, such as 'attention/q' or 'attention/*'; () is all of them.
    "targets": strings(),
    "rank": whole(8, 1),
    "alpha": number(16.0),
    "rank_stabilised": switch(False),
    "dropout": number(0.0, below=1.0),
}


def make(settings, start=NOTHING) -> Method:
    """Returns the method for `config.method`."""
    rank = settings.rank
    scale = settings.alpha / (math.sqrt(rank) if settings.rank_stabilised else rank)

    def init(rng, lm, task):
        trained = {}
        for place, layer in enumerate(select_layers(lm.sites, "lora", settings.targets)):
            letters = lm.sites[f"lora/{layer}/b"].split()[1], lm.sites[f"lora/{layer}/a"].split()[2]
            outputs, inputs = (lm.sizes[letter] for letter in letters)
            bound = 1 / math.sqrt(inputs)
            key, shape = jax.random.fold_in(rng, place), (lm.spec.layers, rank, inputs)
            trained[f"{layer}/a"] = jax.random.uniform(key, shape, jnp.float32, -bound, bound)
            trained[f"{layer}/b"] = jnp.zeros((lm.spec.layers, outputs, rank), jnp.float32)
        return trained, {}

    def adapt(trained, fixed, frozen, rng, train):
        sites = {}
        for place, (path, leaf) in enumerate(trained.items()):
            if path.endswith("/b"):
                leaf = leaf * scale
            elif train and settings.dropout:
                kept = 1 - settings.dropout
                shape = (leaf.shape[0], 1, leaf.shape[2])
                mask = jax.random.bernoulli(jax.random.fold_in(rng, place), kept, shape)
                leaf = leaf * mask / kept
            sites[f"lora/{path}"] = leaf
        return Given(sites)

    return Method(init, adapt)
