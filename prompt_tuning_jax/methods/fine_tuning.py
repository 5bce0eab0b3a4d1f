"""Fine-tuning: the model's own weights are trained, all of them or some leaves.

A trained leaf is a float32 copy, which stands in the model in place of the frozen one; the frozen
weights are as they were. Leaves are whole: a stack of all layers but the last
('layers/attention/q/weight'), the last layer's ('last/attention/q/weight'), or one outside the
layers ('embed/embedding', which is the head too where that is tied).
"""

import jax.numpy as jnp
from flax import traverse_util

from prompt_tuning_jax.config.key import strings
from prompt_tuning_jax.errors import UserError
from prompt_tuning_jax.methods.base import NOTHING, Given, Method
from prompt_tuning_jax.methods.parts import match_paths

DEFAULTS = {"learning_rate": 0.0001}
TRAINS_WEIGHTS = True  # those of the model, which so cannot be in int8
KEYS = {
    # Such as '*norm/scale', 'embed/*' or 'last/*'; () is all leaves.
    "leaves": strings(),
}


def make(settings, start=NOTHING) -> Method:
    """Returns the method for `config.method`."""

    def init(rng, lm, task):
        if lm.settings.get("quantize"):
            raise UserError(
                "config.model.quantize is 'int8', and fine-tuning trains the weights themselves:"
                " leave one of the two out"
            )
        leaves = traverse_util.flatten_dict(lm.params, sep="/")
        chosen = match_paths(list(leaves), settings.leaves, "config.method.leaves", "weights")
        # Copies: the step takes the memory of what is trained.
        trained = {path: jnp.array(leaves[path], jnp.float32, copy=True) for path in chosen}
        return trained, {"dtype": jnp.zeros((), lm.dtype)}

    def adapt(trained, fixed, frozen, rng, train):
        dtype = fixed["dtype"].dtype
        return Given(params={path: leaf.astype(dtype) for path, leaf in trained.items()})

    return Method(init, adapt)
