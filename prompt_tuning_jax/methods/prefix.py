"""Prefix tuning (Li & Liang 2021): P trained keys and values in front of every layer's own.

The template needs no `{soft}`; its text, BOS included, comes behind the prefix, whose P positions
it cannot have. Keys are trained as attention reads them, after the rotary embedding.

`method.init` is one of `methods/init.py`, and the first keys and values are those that the model
computes for its virtual tokens ('text': a real text's, the best by far where data is scarce); or it
is 'random', normal of deviation `method.init_scale`; or 'zero', where all P get the same gradient
and stay one and the same, unless a network makes them differ.

With `method.hidden_size` the paper's network (embedding, linear, tanh, linear) is trained and then
gone: the artifact holds keys and values. Departure: keys and values are trained too, and what the
network gives is added to them, from a last layer that starts at zero, so that training begins
exactly at `method.init`.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from prompt_tuning_jax.errors import UserError
from prompt_tuning_jax.methods.base import Method
from prompt_tuning_jax.methods.init import check_positions, first_vectors
from prompt_tuning_jax.methods.network import two_layers
from prompt_tuning_jax.models.cached import bake
from prompt_tuning_jax.run import artifact


def make(settings) -> Method:
    """The method for `config.method`: num_virtual_tokens, init, what that reads, hidden_size."""

    def network(shape):
        layers, _, heads, size = shape
        return two_layers(settings.hidden_size, 2 * layers * heads * size, nn.tanh)

    def init(rng, lm, task):
        prefix = _first(rng, settings, lm, task)
        if not settings.hidden_size:
            return prefix
        embedding, weights = jax.random.split(jax.random.fold_in(rng, 1))
        shape = (settings.num_virtual_tokens, settings.hidden_size)
        inputs = jax.random.normal(embedding, shape, jnp.float32)
        weights = network(prefix["k"].shape).init(weights, inputs)
        return {**prefix, "inputs": inputs, "network": weights["params"]}

    def adapt(trainable, rng, train):
        prefix = {name: trainable[name] for name in ("k", "v")}
        if "network" in trainable:
            layers, tokens, heads, size = shape = prefix["k"].shape
            made = network(shape).apply({"params": trainable["network"]}, trainable["inputs"])
            made = made.reshape(tokens, 2, layers, heads, size)
            prefix = {
                name: prefix[name] + made[:, number].swapaxes(0, 1)
                for number, name in enumerate(("k", "v"))
            }
        return {"prefix": prefix}

    return Method(init, adapt)


def _first(rng, settings, lm, task):
    """The first keys and values, float32[L, P, K, d] each."""
    check_positions(settings, lm)
    spec = lm.spec
    shape = (spec.layers, settings.num_virtual_tokens, spec.kv_heads, spec.head_size)
    if settings.init == "zero":
        return {name: jnp.zeros(shape, jnp.float32) for name in ("k", "v")}
    if settings.init == "random":
        pair = jax.random.normal(rng, (2, *shape), jnp.float32) * settings.init_scale
        return dict(zip(("k", "v"), pair, strict=True))
    prefix = _earlier(settings, shape) if settings.init == "file" else None
    if prefix is None:
        vectors = first_vectors(rng, settings, lm, task)
        slots = -1 - np.arange(len(vectors), dtype=np.int32)
        prefix = bake(lm, slots, {"prompt": {"vectors": vectors}})["prefix"]
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), prefix)


def _earlier(settings, shape):
    """The prefix of the artifact `method.init_file`; None where that holds virtual tokens."""
    if Path(settings.init_file).suffix == ".npy":
        return None
    prefix = artifact.load_artifact(settings.init_file).collections.get("prefix")
    found = {name: leaf.shape for name, leaf in (prefix or {}).items()}
    if prefix is not None and found != {"k": shape, "v": shape}:
        raise UserError(
            f"method.init_file='{settings.init_file}' holds a prefix of {found}; 'k' and 'v' of "
            f"{shape} are needed (layers, method.num_virtual_tokens, key heads and their size)."
        )
    return prefix
