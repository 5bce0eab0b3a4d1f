"""Keys and values that are computed once and kept: those of shared positions (`bake`), and those of
the rows in a generation (`prefill`, then `decode` for each further token)."""

import functools
import operator
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from prompt_tuning_jax.models.attention import MASKED
from prompt_tuning_jax.models.decoder import Decoder
from prompt_tuning_jax.models.language_model import LanguageModel
from prompt_tuning_jax.models.layers import POSITIONS_AXIS, Block, Context
from prompt_tuning_jax.models.positions import rotary_tables
from prompt_tuning_jax.models.sites import bind, prefix_length, unbind_baked


def bake(lm: LanguageModel, shared: np.ndarray, collections):
    """Turns int32[S] shared positions into a prefix: their keys and values, behind those of the
    prefix in `collections`, if any. All other collections stay."""
    if len(shared) == 0:
        return collections
    baked = _bake(lm.module, lm.params, collections, jnp.asarray(shared))
    return {**collections, "prefix": baked}


@functools.partial(jax.jit, static_argnums=0)
def _bake(module: Decoder, params, collections, shared):
    row = jnp.zeros((1, 1), jnp.int32)
    variables = {"params": params, **bind(module.spec, collections)}
    _, out = module.apply(variables, shared, row, row, row, row, row, mutable=["baked"])
    return unbind_baked(out["baked"])


def split_layers(module: Decoder, params, collections: Mapping[str, Mapping[str, jax.Array]]):
    """Returns the variables of each of the L layers, on the default device, for `decode`.

    A scan copies each layer's weights out of its stack, which costs as much as reading them once
    more: little beside long rows, half of the time if a row is one token. On a CPU the parts are
    views; elsewhere they take the memory of the layers again.
    """
    stacks, last = {"params": params["layers"]}, {"params": params["last"]}
    if prefix := bind(module.spec, collections).get("prefix"):
        stacks["prefix"], last["prefix"] = prefix["layers"], prefix["last"]
    if jax.default_backend() == "cpu":
        stacks = jax.device_get(stacks)
    return jax.device_put([*_unstack(stacks, module.spec.layers - 1), last])


def _unstack(stacks, length: int) -> list:
    """Returns the parts of a tree of `[length, ...]` arrays."""
    return [jax.tree.map(operator.itemgetter(number), stacks) for number in range(length)]


def prefill(module: Decoder, params, collections, tokens, positions, segments, size: int):
    """Runs whole rows, of which only the end is read: the first call of a generation.

    Args:
      module, params: the frozen model.
      collections: as for `bind`; the shared positions are in the prefix.
      tokens, positions, segments: int32[R, T], one example a row; segment 0 is padding.
      size: C, the positions that the cache has, those of the rows first.

    Returns:
      float32[R, V] logits of what follows the highest position, and the cache: for each layer keys
      `[R, K, d, C]` and values `[R, K, C, d]`.
    """
    ends = jnp.argmax(jnp.where(segments > 0, positions, -1), axis=1)[:, None]
    variables = {"params": params, **bind(module.spec, collections)}
    shared, branches = jnp.zeros((0,), jnp.int32), jnp.zeros_like(tokens)
    hidden, kept = module.apply(
        variables, shared, tokens, positions, segments, branches, ends, mutable=["cache"]
    )
    logits = module.apply(variables, hidden[:, 0], method="logits")

    def widen(name, part):
        padding = [(0, 0)] * part.ndim
        padding[POSITIONS_AXIS[name]] = (0, size - tokens.shape[1])
        return jnp.pad(part, padding)

    stacks, last = (kept["cache"][name]["attention"] for name in ("layers", "last"))
    layers = [*_unstack(stacks, module.spec.layers - 1), last]
    return logits, [{name: widen(name, part) for name, part in layer.items()} for layer in layers]


def decode(module: Decoder, params, layers, cache, tokens, positions, visible, place):
    """Runs one more token in each row, behind what the cache holds.

    Args:
      module, params: the frozen model.
      layers: from `split_layers`.
      cache: from `prefill` or the call before.
      tokens, positions: int32[R].
      visible: bool[R, C], the positions of the cache that a row sees, the token's own among them.
      place: int32[], where in the cache the tokens go.

    Returns:
      float32[R, V] logits of what follows, and the cache.
    """
    mask = jnp.where(visible, 0.0, MASKED)[:, None]
    tables = rotary_tables(module.spec, positions + prefix_length(layers[-1]))
    context = Context(*tables, mask, place)
    x = module.apply({"params": params}, tokens, method="vectors")
    block, written = Block(module.spec, module.precision), []
    for layer, before in zip(layers, cache, strict=True):
        variables = {**layer, "cache": {"attention": before}}
        (x, _), kept = block.apply(variables, x, context, mutable=["cache"])
        written.append(kept["cache"]["attention"])
    return module.apply({"params": params}, x, method="finish"), written
