"""A prompt encoder: a small network over learned inputs makes the P virtual tokens.

All tokens share the network. They stand where the template has `{soft}`, and the artifact holds the
tokens alone. This is residual prompt tuning (Razdaibiedina et al. 2023), vectors = inputs +
network(inputs), after P-tuning (Liu et al. 2021), which has no inputs to add.

Departures: the network ends in a linear layer that starts at zero and not in a layer norm, so that
training begins exactly at `method.init`. It is as wide as the model, or `method.hidden_size`.
"""

import jax
from flax import linen as nn

from prompt_tuning_jax.config.key import whole
from prompt_tuning_jax.methods.base import Method
from prompt_tuning_jax.methods.init import TOKEN_KEYS, first_vectors
from prompt_tuning_jax.methods.network import two_layers

# The width of the network's hidden layer; 0: the model's.
KEYS = {**TOKEN_KEYS, "hidden_size": whole(0)}
HAS_SLOTS = True


def make(settings, start=None) -> Method:
    """Returns the method for `config.method` and the tensors in its `init_file`."""

    def network(width):
        return two_layers(settings.hidden_size or width, width, nn.relu)

    def init(rng, lm, task):
        inputs = first_vectors(rng, settings, lm, task, start)
        weights = network(lm.spec.width).init(jax.random.fold_in(rng, 1), inputs)
        return {"inputs": inputs, "network": weights["params"]}

    def adapt(trainable, rng, train):
        inputs, weights = trainable["inputs"], {"params": trainable["network"]}
        return {"prompt": {"vectors": inputs + network(inputs.shape[1]).apply(weights, inputs)}}

    return Method(init, adapt)
