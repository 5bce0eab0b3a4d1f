"""Keys and values that are computed once and kept: those of shared positions (`bake`), and those of
the rows in a generation (`prefill`, then `decode` for each further token)."""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np

from prompt_tuning_jax.models.attention import MASKED
from prompt_tuning_jax.models.decoder import LAYERED, Decoder
from prompt_tuning_jax.models.language_model import LanguageModel
from prompt_tuning_jax.models.layers import POSITIONS_AXIS, Block, Context, layer_kinds
from prompt_tuning_jax.models.positions import rotary_tables
from prompt_tuning_jax.models.sites import PREFIX, VISIBLE, Given, bind
from prompt_tuning_jax.sharding import is_divided, is_spread


def bake(lm: LanguageModel, shared: np.ndarray, given: Given) -> Given:
    """Turns int32[S] shared positions into a prefix: their keys and values, behind those of the
    prefix in `given`, if any. Everything else that is given stays."""
    if len(shared) == 0:
        return given
    return given._replace(sites=given.sites | _bake(lm.module, lm.params, given, shared))


@functools.partial(jax.jit, static_argnums=0)
def _bake(module: Decoder, params, given: Given, shared):
    row = jnp.zeros((1, 1), jnp.int32)
    variables = bind(module.spec, params, given)
    _, out = module.apply(variables, shared, row, row, row, row, row, mutable=["baked"])
    baked = {PREFIX[name]: part for name, part in _stack(out["baked"]).items()}
    if VISIBLE in given.sites:
        baked[VISIBLE] = jnp.pad(given.sites[VISIBLE], (0, len(shared)), constant_values=1)
    return baked


def _stack(kept) -> dict:
    """Returns what attention wrote into a collection, with all L layers in one stack."""
    layers, last = (kept[name]["attention"] for name in ("layers", "last"))
    return {name: jnp.concatenate([layers[name], part[None]]) for name, part in last.items()}


def bake_rows(module: Decoder, params, fronts):
    """Returns the keys and values of many fronts int32[N, S], `[N, L, S, K, d]`, as `bake` has them
    for one, and the hidden states `[N, S, D]`."""
    places = jnp.broadcast_to(jnp.arange(fronts.shape[1]), fronts.shape)
    ones, shared = jnp.ones_like(places), jnp.zeros((0,), jnp.int32)
    hidden, kept = module.apply(
        {"params": params}, shared, fronts, places, ones, 0 * ones, places, mutable=["cache"]
    )
    whole = _stack(kept["cache"])
    return whole["k"].transpose(1, 0, 4, 2, 3), whole["v"].transpose(1, 0, 3, 2, 4), hidden


def split_layers(module: Decoder, variables) -> list:
    """Returns the variables (from `bind`) of each of the L layers, on the default device. A scan
    copies each layer's weights out of its stack: with one token a row, half of the time. On a CPU
    the parts are views; elsewhere they take the memory of the layers again."""
    layered = {name: variables[name] for name in ("params", *LAYERED) if name in variables}
    stacks = {name: part["layers"] for name, part in layered.items()}
    if jax.default_backend() == "cpu" and not any(map(is_divided, jax.tree.leaves(stacks))):
        stacks = jax.device_get(stacks)
    last = {name: part["last"] for name, part in layered.items()}
    layers = _each_layer(module, stacks, last)
    return layers if any(map(is_spread, jax.tree.leaves(layers))) else jax.device_put(layers)


def _each_layer(module: Decoder, stacks, last) -> list:
    """Returns the trees of all L layers: the parts of arrays `[L-1, ...]`, and the last one's."""
    numbers = range(module.spec.layers - 1)
    return [*(jax.tree.map(operator.itemgetter(number), stacks) for number in numbers), last]


def prefill(module: Decoder, variables, tokens, positions, segments, size: int):
    """Runs whole rows, the first call of a generation. Returns float32[R, V] logits of what follows
    the highest position, and the cache: each layer's keys `[R, K, d, C]` and values `[R, K, C, d]`.

    Args:
      variables: from `bind`; the shared positions are in the prefix.
      tokens, positions, segments: int32[R, T], one example a row; segment 0 is padding.
      size: C, the positions of the cache.
    """
    ends = jnp.argmax(jnp.where(segments > 0, positions, -1), axis=1)[:, None]
    shared, branches = jnp.zeros((0,), jnp.int32), jnp.zeros_like(tokens)
    hidden, kept = module.apply(
        variables, shared, tokens, positions, segments, branches, ends, mutable=["cache"]
    )
    logits = module.apply(variables, hidden[:, 0], method="logits")

    def widen(name, part):
        more = size - tokens.shape[1]
        return jnp.pad(part, [(0, more * (n == POSITIONS_AXIS[name])) for n in range(part.ndim)])

    parts = (kept["cache"][name]["attention"] for name in ("layers", "last"))
    layers = _each_layer(module, *parts)
    return logits, [{name: widen(name, part) for name, part in layer.items()} for layer in layers]


def decode(module: Decoder, variables, layers, cache, tokens, positions, visible, place):
    """Runs one more token in each row, behind what the cache holds. Returns float32[R, V] logits of
    what follows, and the cache.

    Args:
      variables: from `bind`, for what is in no layer; `layers` are from `split_layers`.
      cache: from `prefill` or the call before.
      tokens, positions: int32[R].
      visible: bool[R, C], the positions of the cache that a row sees, the token's own among them.
      place: int32[], where in the cache the tokens go.
    """
    mask = jnp.where(visible, 0.0, MASKED)[:, None]
    front = len(layers[-1]["prefix"]["attention"]["k"]) if "prefix" in layers[-1] else 0
    positions = positions + front
    context = Context(rotary_tables(module.spec, positions), mask, positions, place)
    kinds = layer_kinds(module.spec, front + visible.shape[1])
    x = module.apply(variables, tokens, positions, method="begin")
    block, written = Block(module.spec, module.precision), []
    for number, (layer, before) in enumerate(zip(layers, cache, strict=True)):
        held = {**layer, "cache": {"attention": before}}
        kind = jax.tree.map(operator.itemgetter(number), kinds)
        (x, _), kept = block.apply(held, x, context, kind, mutable=["cache"])
        written.append(kept["cache"]["attention"])
    logits, _ = module.apply(variables, x, method="finish", mutable=["cache"])  # see `times`
    return logits, written
