"""A prompt encoder: something small that is trained makes the P virtual tokens, and is thrown away.

The tokens stand where the template has `{soft}`, and the artifact holds them alone. They begin
exactly at `method.init`. `method.kind` is

- `residual` (Razdaibiedina et al. 2023): inputs + network(inputs), after P-tuning (Liu et al.
  2021), which adds no inputs. Departure: the network ends in a linear layer that starts at zero
  and not in a layer norm.
- `low_rank` (ULPT, 2025): codes [P, r] times a fixed random matrix [r, D], scaled and shifted.
  Departure: what the codes make is added to the first tokens, and codes start at zero.
- `superposition` (SuperPos, SadraeiJavaeri et al. 2024): sums of fixed embeddings of drawn words
  with trained weights. Departure: the first P words are the first tokens themselves.
"""

import jax
import jax.numpy as jnp

from prompt_tuning_jax.config.key import among, whole
from prompt_tuning_jax.methods.base import NOTHING, Given, Method
from prompt_tuning_jax.methods.init import TOKEN_KEYS, draw_embeddings, first_vectors
from prompt_tuning_jax.methods.parts import two_layers
from prompt_tuning_jax.models.sites import PROMPT

HAS_SLOTS = True


def _begin_residual(rng, size, first, lm):
    weights = two_layers(size, first.shape[1]).init(jax.random.fold_in(rng, 1), first)
    return {"inputs": first, "network": weights["params"]}, {}


def _make_residual(trained, fixed, size):
    inputs, weights = trained["inputs"], {"params": trained["network"]}
    width = inputs.shape[1]
    return inputs + two_layers(size or width, width).apply(weights, inputs)


def _begin_low_rank(rng, size, first, lm):
    tokens, width = first.shape
    random = jax.random.normal(jax.random.fold_in(rng, 1), (size, width)) / size**0.5
    trained = {"codes": jnp.zeros((tokens, size)), "scale": jnp.ones(width)}
    return {**trained, "shift": jnp.zeros(width)}, {"first": first, "random": random}


def _make_low_rank(trained, fixed, size):
    made = jnp.matmul(trained["codes"], fixed["random"], precision="highest")
    return fixed["first"] + made * trained["scale"] + trained["shift"]


def _begin_superposition(rng, size, first, lm):
    given, wanted = f"hidden_size is {size}", "as many words: give fewer"
    drawn = draw_embeddings(jax.random.fold_in(rng, 1), size, lm, lm.spec.vocabulary, given, wanted)
    weights = jnp.eye(len(first), len(first) + size)
    return {"weights": weights}, {"words": jnp.concatenate([first, drawn])}


def _make_superposition(trained, fixed, size):
    return jnp.matmul(trained["weights"], fixed["words"], precision="highest")


# The size for `hidden_size` 0 (0: the model's width), what makes the first values, and the tokens.
KINDS = {
    "residual": (0, _begin_residual, _make_residual),
    "low_rank": (64, _begin_low_rank, _make_low_rank),
    "superposition": (128, _begin_superposition, _make_superposition),
}
KEYS = {
    **TOKEN_KEYS,
    "kind": among("residual", KINDS),
    # The width of the network, the rank r, or the number of words; 0: the model's, 64, or 128.
    "hidden_size": whole(0),
}


def make(settings, start=NOTHING) -> Method:
    """Returns the method for `config.method` and the tensors in its `init_file`."""
    usual, begin, made = KINDS[settings.kind]
    size = settings.hidden_size or usual

    def init(rng, lm, task):
        first = first_vectors(rng, settings, lm, task, start)
        return begin(rng, size or lm.spec.prompt_width, first, lm)

    def adapt(trained, fixed, frozen, rng, train):
        return Given({PROMPT: made(trained, fixed, size)})

    return Method(init, adapt)
