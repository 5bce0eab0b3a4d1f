"""Prefix tuning (Li & Liang 2021): P trained keys and values in front of every layer's own.

The template needs no `{soft}`: its text, BOS included, comes after the P positions of the prefix.
Keys are trained as attention reads them, after the rotary embedding.

`method.init` is one of `methods/init.py`: the first keys and values are those that the model
computes for these virtual tokens. With little data those of a text or of demonstrations are far
better than random ones. Or it is 'random' (normal, with the deviation `method.init_scale`), or
'zero' (all P get the same gradient and stay equal, unless there is a network).

With `method.hidden_size` the paper's network (embedding, linear, tanh, linear) is trained too. The
artifact holds keys and values alone. Departure: the network's output is added to trained keys and
values, from a last layer that starts at zero, so that training begins exactly at `method.init`.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from prompt_tuning_jax.config.key import among, number, whole
from prompt_tuning_jax.errors import UserError
from prompt_tuning_jax.methods.base import NOTHING, Given, Method
from prompt_tuning_jax.methods.init import INITS, TOKEN_KEYS, check_positions, first_vectors
from prompt_tuning_jax.methods.parts import two_layers
from prompt_tuning_jax.models.cached import bake
from prompt_tuning_jax.models.sites import PREFIX, PROMPT, VISIBLE

KEYS = {
    **TOKEN_KEYS,
    "init": among("vocabulary", (*INITS, "file", "random", "zero")),
    # The width of the network's hidden layer; 0: there is no network.
    "hidden_size": whole(0),
    # The share of the positions that an update does not see.
    "dropout": number(0.0, below=1.0),
}


def make(settings, start=NOTHING) -> Method:
    """Returns the method for `config.method` and the tensors in its `init_file`."""

    def network(shape):
        layers, _, heads, size = shape
        return two_layers(settings.hidden_size, 2 * layers * heads * size, nn.tanh)

    def init(rng, lm, task):
        prefix = _first(rng, settings, lm, task, start)
        if not settings.hidden_size:
            return prefix, {}
        embedding, weights = jax.random.split(jax.random.fold_in(rng, 1))
        shape = (prefix["k"].shape[1], settings.hidden_size)
        inputs = jax.random.normal(embedding, shape, jnp.float32)
        weights = network(prefix["k"].shape).init(weights, inputs)
        return {**prefix, "inputs": inputs, "network": weights["params"]}, {}

    def adapt(trained, fixed, frozen, rng, train):
        sites = {path: trained[name] for name, path in PREFIX.items()}
        if "network" in trained:
            layers, tokens, heads, size = shape = trained["k"].shape
            made = network(shape).apply({"params": trained["network"]}, trained["inputs"])
            made = made.reshape(tokens, 2, layers, heads, size).transpose(1, 2, 0, 3, 4)
            sites = {path: sites[path] + more for path, more in zip(sites, made, strict=True)}
        if train and settings.dropout:
            shape = trained["k"].shape[1:2]
            sites[VISIBLE] = jax.random.bernoulli(rng, 1 - settings.dropout, shape).astype(float)
        return Given(sites)

    return Method(init, adapt)


def _first(rng, settings, lm, task, start):
    """Returns the first keys and values, float32[L, P, K, d] each."""
    check_positions(settings, lm)
    spec = lm.spec
    shape = (spec.layers, settings.num_virtual_tokens, spec.kv_heads, spec.head_size)
    if settings.init == "zero":
        return {name: jnp.zeros(shape, jnp.float32) for name in ("k", "v")}
    if settings.init == "random":
        pair = jax.random.normal(rng, (2, *shape), jnp.float32) * settings.init_scale
        return dict(zip(("k", "v"), pair, strict=True))
    held = {name: start.sites[path].shape for name, path in PREFIX.items() if path in start.sites}
    if held and held != {"k": shape, "v": shape}:
        raise UserError(
            f"config.method.init_file is '{settings.init_file}', which holds a prefix of {held}: "
            f"expected 'k' and 'v' of {shape} (layers, num_virtual_tokens, key heads, their size)."
        )
    if not held:
        vectors = first_vectors(rng, settings, lm, task, start)
        start = bake(lm, -1 - np.arange(len(vectors), dtype=np.int32), Given({PROMPT: vectors}))
    return {name: jnp.asarray(start.sites[path], jnp.float32) for name, path in PREFIX.items()}
