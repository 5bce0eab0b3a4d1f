"""Attention of packed rows to a front that all of them share and to themselves, with its gradient.

The gradient is written out because the plain one keeps or repeats too much: here the backward pass
needs the arguments, the output and one number a query (the log of its softmax's sum), and computes
the weights again in a single pass, as FlashAttention (Dao et al. 2022) does.
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def attend(query, front, own, mask, precision):
    """Attention of every query to the whole front and to the keys of its own row that it may see.

    Args:
      query: `[R, Tq, K, G, d]`, already scaled by d**-0.5; G query heads use each of K key heads.
      front: keys and values `[F, K, d]`, all of them visible; F may be 0.
      own: keys and values `[R, T, K, d]`.
      mask: additive float32[R, Tq, T]; every query sees one key at least.
      precision: of the products.

    Returns:
      `[R, Tq, K, G, d]`; the softmax is float32. The backward pass needs this, named "attended" for
      remat, and "normalizer", float32[K, R, Tq*G, 1].
    """
    return _forward(query, front, own, mask, precision)[0]


def _forward(query, front, own, mask, precision):
    rows, length, heads, group, size = query.shape
    additive = jnp.repeat(mask, group, axis=1)
    one = functools.partial(_forward_head, additive, precision)
    stacks = _queries(query), *_fronts(front), *_owns(own)
    seen, normalizer = _each_head(one, stacks)
    seen = seen.reshape(heads, rows, length, group, size).transpose(1, 2, 0, 3, 4)
    seen = checkpoint_name(seen, "attended")
    normalizer = checkpoint_name(normalizer, "normalizer")
    return seen, (query, front, own, mask, seen, normalizer)


def _backward(precision, kept, cotangent):
    query, front, own, mask, seen, normalizer = kept
    rows, length, heads, group, size = query.shape
    additive = jnp.repeat(mask, group, axis=1)
    one = functools.partial(_backward_head, additive, precision)
    stacks = _queries(query), *_fronts(front), *_owns(own)
    parts = _each_head(one, (*stacks, _queries(seen), normalizer, _queries(cotangent)))
    to_query, front_key, front_value, own_key, own_value = parts
    return (
        to_query.reshape(heads, rows, length, group, size).transpose(1, 2, 0, 3, 4),
        (front_key.swapaxes(0, 1), front_value.swapaxes(0, 1)),
        (own_key.transpose(1, 2, 0, 3), own_value.transpose(1, 2, 0, 3)),
        None,
    )


attend.defvjp(_forward, _backward)


def _forward_head(additive, precision, query, front_key, front_value, own_key, own_value):
    """`_forward` for one key head: `[R, N, d]` queries, N = Tq*G, `[F, d]` and `[R, T, d]` keys and
    values, additive float32[R, N, T]. Returns `[R, N, d]` and float32[R, N, 1]."""
    product = functools.partial(_product, precision)
    to_front = product("md,fd->mf", _flat(query), front_key)
    to_own = product("rnd,rud->rnu", query, own_key) + additive
    highest = to_own.max(axis=-1, keepdims=True)
    if front_key.shape[0]:
        most = to_front.max(axis=-1, keepdims=True)
        highest = jnp.maximum(highest, most.reshape(highest.shape))
    front, own = jnp.exp(to_front - _flat(highest)), jnp.exp(to_own - highest)
    total = own.sum(axis=-1, keepdims=True)
    total += front.sum(axis=-1, keepdims=True).reshape(total.shape)
    seen = product("rnu,rud->rnd", own, own_value)
    seen += product("mf,fd->md", front, front_value).reshape(seen.shape)
    return (seen / total).astype(query.dtype), highest + jnp.log(total)


def _backward_head(
    additive, precision, query, front_key, front_value, own_key, own_value, seen, normalizer, given
):
    """Gradients of `_forward_head` in its last five arguments; `given` is that of what it saw."""
    product = functools.partial(_product, precision)
    # The same for every key: the mean of the weights' gradients, weighted by the weights.
    mean = (seen.astype(jnp.float32) * given).sum(axis=-1, keepdims=True)
    flat_query, flat_given = _flat(query), _flat(given)
    front = jnp.exp(product("md,fd->mf", flat_query, front_key) - _flat(normalizer))
    own = jnp.exp(product("rnd,rud->rnu", query, own_key) + additive - normalizer)
    front_scores = front * (product("md,fd->mf", flat_given, front_value) - _flat(mean))
    own_scores = own * (product("rnd,rud->rnu", given, own_value) - mean)
    to_query = product("rnu,rud->rnd", own_scores, own_key)
    to_query += product("mf,fd->md", front_scores, front_key).reshape(to_query.shape)
    gradients = (
        to_query,
        product("mf,md->fd", front_scores, flat_query),
        product("mf,md->fd", front, flat_given),
        product("rnu,rnd->rud", own_scores, query),
        product("rnu,rnd->rud", own, given),
    )
    return tuple(gradient.astype(query.dtype) for gradient in gradients)


def _flat(rows):
    """`[R, N, d]` as `[R*N, d]`: the front is the same for all rows, so theirs is one product."""
    return rows.reshape(-1, rows.shape[-1])


def _product(precision, axes, left, right):
    """An einsum whose sums are float32; weights take the dtype of what they multiply."""
    return jnp.einsum(
        axes,
        left.astype(right.dtype),
        right,
        precision=precision,
        preferred_element_type=jnp.float32,
    )


def _each_head(function, stacks):
    """`function` of each key head's slice of the stacks, its results stacked.

    A CPU runs a batch of small products on one core, one after the other; heads that are products
    of their own run side by side (a step at 100 virtual tokens is a tenth faster on two cores).
    """
    if jax.default_backend() != "cpu":
        return jax.vmap(function)(*stacks)
    heads = [function(*(stack[k] for stack in stacks)) for k in range(stacks[0].shape[0])]
    return tuple(jnp.stack(parts) for parts in zip(*heads, strict=True))


def _queries(query):
    """`[R, Tq, K, G, d]` as `[K, R, Tq*G, d]`."""
    rows, length, heads, group, size = query.shape
    return query.transpose(2, 0, 1, 3, 4).reshape(heads, rows, length * group, size)


def _fronts(front):
    """`[F, K, d]` each as `[K, F, d]`."""
    return tuple(part.swapaxes(0, 1) for part in front)


def _owns(own):
    """`[R, T, K, d]` each as `[K, R, T, d]`."""
    return tuple(part.transpose(2, 0, 1, 3) for part in own)
