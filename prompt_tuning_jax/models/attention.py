"""Attention to a front that all rows share and within the rows, with its gradient written out.

JAX's own gradient keeps too much, or repeats work. Here the backward pass needs the arguments, the
output and one number a query (the logarithm of its softmax's sum), and computes the weights again
in one pass, as FlashAttention (Dao et al. 2022) does.
"""

import functools
import operator

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

MASKED = -1e30  # finite, so that a row of padding alone does not turn into NaN


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def attend(query, front, own, mask, front_mask, shared, cap, precision):
    """Returns what every query sees: the front, and the keys of its own row that its mask shows.

    Args:
      query: `[S + R*Tq, K, G, d]`, scaled: first those of the shared positions, which see the front
        up to themselves and no row, then those of the rows, which see all of the front.
      front: keys and values `[F, K, d]`, those of the shared positions last. F may be 0.
      own: keys and values `[R, T, K, d]`.
      mask: additive float32[R, Tq, T]; every query sees at least one key.
      front_mask: additive float32[S + R*Tq, F], or None if only the order hides anything.
      shared: S, or 0 if nothing reads the shared positions.
      cap: scores are cap * tanh(score / cap), if it is not 0 (Gemma 2).

    Returns:
      `[S + R*Tq, K, G, d]`; the softmax is float32. The backward pass needs this, named "attended"
      for remat, and "normalizer", float32[K, (S + R*Tq) * G, 1].
    """
    return _forward(query, front, own, mask, front_mask, shared, cap, precision)[0]


def _forward(query, front, own, mask, front_mask, shared, cap, precision):
    hidden, row_mask = _masks(query, front, mask, front_mask, shared)
    head = functools.partial(_head_forward, hidden, row_mask, cap, precision)
    seen, normalizer = _each_head(head, *_by_head(query, front, own))
    seen = checkpoint_name(_join_heads(seen, query.shape), "attended")
    normalizer = checkpoint_name(normalizer, "normalizer")
    return seen, (query, front, own, mask, front_mask, seen, normalizer)


def _backward(shared, cap, precision, kept, given):
    query, front, own, mask, front_mask, seen, normalizer = kept
    hidden, row_mask = _masks(query, front, mask, front_mask, shared)
    head = functools.partial(_head_backward, hidden, row_mask, cap, precision)
    stacks = *_by_head(query, front, own), _split_heads(seen), normalizer, _split_heads(given)
    to_query, to_front, to_own = _each_head(head, *stacks)
    to_front = tuple(part.swapaxes(0, 1) for part in to_front)
    to_own = tuple(part.transpose(1, 2, 0, 3) for part in to_own)
    return _join_heads(to_query, query.shape), to_front, to_own, None, None


attend.defvjp(_forward, _backward)


def attend_cached(query, front, cache, mask, front_mask, cap, precision):
    """Returns `[R, K, G, d]`, what one query a row sees of keys that were kept. Has no gradient.

    Args:
      query, front: `[R, K, G, d]`, and twice `[F, K, d]`. What is not listed is as in `attend`.
      cache: keys `[R, K, d, C]` and values `[R, K, C, d]`, as the two products read them fastest.
      mask, front_mask: additive float32[R, 1, C], and float32[R, F] or None.
    """
    product = functools.partial(_product, precision)
    own = _capped(product("rkgd,rkdc->rkgc", query, cache[0]), cap) + mask[:, None]
    before = _capped(product("rkgd,fkd->rkgf", query, front[0]), cap)
    before = before if front_mask is None else before + front_mask[:, None, None]
    weights = jax.nn.softmax(jnp.concatenate([before, own], axis=-1), axis=-1)
    size = len(front[0])
    seen = product("rkgc,rkcd->rkgd", weights[..., size:], cache[1])
    seen += product("rkgf,fkd->rkgd", weights[..., :size], front[1])
    return seen.astype(query.dtype)


def front_share(query, front, own, mask, front_mask, cap, precision):
    """Returns float32[R, Tq, F], the part of a query's weights that each position of the front has,
    a mean over heads. The arguments are those of `attend` without shared positions."""
    product, rows = functools.partial(_product, precision), mask.shape[:2]
    before = _capped(product("nkgd,fkd->nkgf", query, front[0]), cap)
    before = before if front_mask is None else before + front_mask[:, None, None]
    query, before = (part.reshape(*rows, *part.shape[1:]) for part in (query, before))
    own = _capped(product("rqkgd,rtkd->rqkgt", query, own[0]), cap) + mask[:, :, None, None]
    weights = jax.nn.softmax(jnp.concatenate([before, own], axis=-1), axis=-1)
    return weights[..., : len(front[0])].mean(axis=(2, 3))


def _head_forward(front_mask, mask, cap, precision, query, front, own):
    """`attend` for one key head: `[M, d]` queries, M = (S + R*Tq) * G, keys and values `[F, d]` and
    `[R, T, d]`, additive float32[M, F] or None and float32[R, Tq*G, T]. Returns `[M, d]` and
    float32[M, 1]."""
    product = functools.partial(_product, precision)
    (front_key, front_value), (own_key, own_value) = front, own
    own = _capped(product("rnd,rud->rnu", _rows(query, mask), own_key), cap) + mask
    highest = _after_shared(own.max(axis=-1, keepdims=True), query, MASKED)
    front = _capped(product("md,fd->mf", query, front_key), cap)
    if front_key.shape[0]:
        front = front if front_mask is None else front + front_mask
        highest = jnp.maximum(highest, front.max(axis=-1, keepdims=True))
    front, own = jnp.exp(front - highest), jnp.exp(own - _rows(highest, mask))
    total = front.sum(axis=-1, keepdims=True)
    total += _after_shared(own.sum(axis=-1, keepdims=True), query, 0.0)
    seen = product("mf,fd->md", front, front_value)
    seen += _after_shared(product("rnu,rud->rnd", own, own_value), query, 0.0)
    return (seen / total).astype(query.dtype), highest + jnp.log(total)


def _head_backward(front_mask, mask, cap, precision, query, front, own, seen, normalizer, given):
    """Gradients of `_head_forward` in `query`, `front` and `own`; `given` is that of its result."""
    product = functools.partial(_product, precision)
    (front_key, front_value), (own_key, own_value) = front, own
    # The same for every key: the mean of the weights' gradients, weighted by the weights.
    mean = (seen.astype(jnp.float32) * given).sum(axis=-1, keepdims=True)
    capped = _capped(product("md,fd->mf", query, front_key), cap)
    front = capped - normalizer
    front = jnp.exp(front if front_mask is None else front + front_mask)
    front_scores = front * (product("md,fd->mf", given, front_value) - mean)
    front_scores = _uncap(front_scores, capped, cap)
    flat = query, given, normalizer, mean
    own_query, own_given, own_normalizer, own_mean = (_rows(part, mask) for part in flat)
    capped = _capped(product("rnd,rud->rnu", own_query, own_key), cap)
    own = jnp.exp(capped + mask - own_normalizer)
    own_scores = own * (product("rnd,rud->rnu", own_given, own_value) - own_mean)
    own_scores = _uncap(own_scores, capped, cap)
    to_query = product("mf,fd->md", front_scores, front_key)
    to_query += _after_shared(product("rnu,rud->rnd", own_scores, own_key), query, 0.0)
    to_front = product("mf,md->fd", front_scores, query), product("mf,md->fd", front, given)
    to_own = (
        product("rnu,rnd->rud", own_scores, own_query),
        product("rnu,rnd->rud", own, own_given),
    )
    return jax.tree.map(lambda part: part.astype(query.dtype), (to_query, to_front, to_own))


def _capped(scores, cap):
    return cap * jnp.tanh(scores / cap) if cap else scores


def _uncap(gradient, capped, cap):
    """The gradient in the scores before the cap, from that in the scores after it."""
    return gradient * (1 - jnp.square(capped / cap)) if cap else gradient


def _product(precision, axes, left, right):
    """An einsum whose sums are float32; `left` takes the dtype of `right`."""
    left = left.astype(right.dtype)
    return jnp.einsum(axes, left, right, precision=precision, preferred_element_type=jnp.float32)


def _each_head(function, *stacks):
    """Calls `function` for each key head's slice of the trees, and stacks the results. A CPU runs a
    batch of small products on one core; heads that are products of their own run side by side."""

    def side_by_side(*stacks):
        heads = len(jax.tree.leaves(stacks)[0])
        results = [function(*jax.tree.map(operator.itemgetter(k), stacks)) for k in range(heads)]
        return jax.tree.map(lambda *parts: jnp.stack(parts), *results)

    return jax.lax.platform_dependent(*stacks, cpu=side_by_side, default=jax.vmap(function))


def _masks(query, front, mask, front_mask, shared):
    """Additive masks for the queries of one key head: float32[M, F] for the front, or None if all
    see all of it, and float32[R, Tq*G, T] for the rows."""
    positions, group, size = query.shape[0], query.shape[2], front[0].shape[0]
    mask = jnp.repeat(mask, group, axis=1)
    if front_mask is not None:
        front_mask = jnp.repeat(front_mask, group, axis=0)
    if not shared:
        return front_mask, mask
    last = size - shared + jnp.arange(positions * group) // group
    causal = jnp.where(jnp.arange(size) <= last[:, None], 0.0, MASKED)
    return causal if front_mask is None else jnp.minimum(causal, front_mask), mask


def _rows(flat, mask):
    """Takes the rows' part of `[M, ...]`, as `[R, Tq*G, ...]`."""
    rows, length = mask.shape[:2]
    return flat[len(flat) - rows * length :].reshape(rows, length, -1)


def _after_shared(rows, query, value):
    """Turns `[R, Tq*G, ...]` into `[M, ...]`, with `value` for the shared positions."""
    flat = rows.reshape(-1, rows.shape[-1])
    return jnp.pad(flat, ((len(query) - len(flat), 0), (0, 0)), constant_values=value)


def _by_head(query, front, own):
    """Puts the key head first: `[K, M, d]`, twice `[K, F, d]` and twice `[K, R, T, d]`."""
    front = tuple(part.swapaxes(0, 1) for part in front)
    return _split_heads(query), front, tuple(part.transpose(2, 0, 1, 3) for part in own)


def _split_heads(query):
    """Turns `[N, K, G, d]` into `[K, N*G, d]`."""
    positions, heads, group, size = query.shape
    return query.swapaxes(0, 1).reshape(heads, positions * group, size)


def _join_heads(flat, shape):
    """Turns `[K, N*G, d]` back into `[N, K, G, d]`."""
    positions, heads, group, size = shape
    return flat.reshape(heads, positions, group, size).swapaxes(0, 1)
