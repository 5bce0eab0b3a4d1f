"""A prompt encoder: a small network over learned inputs makes the P virtual tokens.

The network is shared by all of them, the tokens stand where the template has `{soft}`, and the
artifact holds the tokens alone. It is residual prompt tuning (Razdaibiedina et al. 2023), vectors =
inputs + network(inputs), after P-tuning (Liu et al. 2021), where the network is all there is.

Departures: the network ends in a linear layer that starts at zero and not in a layer norm, so that
training begins exactly at `method.init`; it is as wide as the model unless `method.hidden_size`
says otherwise.
"""

import jax
from flax import linen as nn

from prompt_tuning_jax.methods.base import Method
from prompt_tuning_jax.methods.init import first_vectors
from prompt_tuning_jax.methods.network import two_layers


def make(settings) -> Method:
    """The method for `config.method`: as the soft prompt's, and hidden_size."""

    def network(width):
        return two_layers(settings.hidden_size or width, width, nn.relu)

    def init(rng, lm, task):
        inputs = first_vectors(rng, settings, lm, task)
        weights = network(lm.spec.width).init(jax.random.fold_in(rng, 1), inputs)
        return {"inputs": inputs, "network": weights["params"]}

    def adapt(trainable, rng, train):
        inputs, weights = trainable["inputs"], {"params": trainable["network"]}
        return {"prompt": {"vectors": inputs + network(inputs.shape[1]).apply(weights, inputs)}}

    return Method(init, adapt)
