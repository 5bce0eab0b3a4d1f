"""The layers of a decoder: linear layers, attention, feed-forward, and the block made of them.

One flat matrix of vectors `[N, D]` goes through the layers, N = S + R*T: the S shared positions,
which do not depend on the example and are computed once, then R rows of T positions. It is one
matrix and not two, so that a product reads its weights once.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from prompt_tuning_jax.models.attention import MASKED, attend, attend_cached
from prompt_tuning_jax.models.positions import rotate
from prompt_tuning_jax.models.spec import Spec

POSITIONS_AXIS = {"k": 3, "v": 2}  # in the leaves of the collection `cache`


class Context(NamedTuple):
    """What all layers read: rotary tables float32[N, 1, d/2] and an additive mask float32[R, T, T].

    In a cached generation a row is one position, which goes to `place` of the C positions of the
    cache, and the mask is float32[R, 1, C].
    """

    cosine: jax.Array
    sine: jax.Array
    row_mask: jax.Array
    place: jax.Array | None = None


def row_mask(segments: jax.Array, branches: jax.Array) -> jax.Array:
    """Returns the additive mask float32[R, T, T] of int32[R, T] segments and branches.

    A query sees a key that does not come after it, is of its segment, and is of the trunk (branch
    0) or of its own branch.
    """
    length = segments.shape[1]
    causal = jnp.tril(jnp.ones((length, length), bool))
    segment = segments[:, :, None] == segments[:, None, :]
    branch = (branches[:, None, :] == 0) | (branches[:, :, None] == branches[:, None, :])
    return jnp.where(causal & segment & branch, 0.0, MASKED)


def take_reads(x: jax.Array, reads: jax.Array) -> jax.Array:
    """Takes int32[R, Q] positions of each row of `[R, T, ...]`: `[R, Q, ...]`."""
    return jax.vmap(lambda row, index: row[index])(x, reads)


def times(x: jax.Array, weight: jax.Array, precision: str | None, dtype=None) -> jax.Array:
    """Multiplies `[N, in]` by a matrix `[out, in]`: `[N, out]` in their dtype, or the one given."""
    axes = ((1,), (1,)), ((), ())
    return jax.lax.dot_general(x, weight, axes, precision, preferred_element_type=dtype)


class Linear(nn.Module):
    """A frozen matrix, stored `[out, in]` as model files have it: `[N, in]` to `[N, out]`.

    A method may add the product of two thin matrices (the collection `lora`) and scale what the
    layer gives, or what it reads (`scale`). A CPU multiplies few rows by a matrix in this order a
    quarter faster than by its transpose, and many as fast.
    """

    features: int
    precision: str | None
    dtype: Any = None
    scaled_input: bool = False

    @nn.compact
    def __call__(self, x):
        start = nn.initializers.lecun_normal(in_axis=-1, out_axis=-2)
        weight = self.param("weight", start, (self.features, x.shape[-1]), x.dtype)
        if self.scaled_input:
            x = self.scale(x)
        y = times(x, weight, self.precision, self.dtype)
        if self.has_variable("lora", "a"):
            a, b = (self.get_variable("lora", name).astype(x.dtype) for name in "ab")
            y += times(times(x, a, self.precision), b, self.precision, self.dtype)
        return y if self.scaled_input else self.scale(y)

    def scale(self, x):
        """Multiplies `[N, size]` by the layer's scale, if any."""
        if self.has_variable("scale", "scale"):
            x = x * self.get_variable("scale", "scale").astype(x.dtype)
        return x


class Attention(nn.Module):
    spec: Spec
    precision: str | None

    @nn.compact
    def __call__(self, x, context, reads=None):
        """`[N, D]` to `[N, D]`, or to `[R*Q, D]` if `reads` int32[R, Q] says which are needed."""
        spec = self.spec
        rows, length = context.row_mask.shape[:2]
        shared = x.shape[0] - rows * length

        def project(name, x, heads):
            linear = Linear(heads * spec.head_size, self.precision, name=name)
            return linear(x).reshape(-1, heads, spec.head_size)

        key = rotate(project("k", x, spec.kv_heads), context.cosine, context.sine)
        key = checkpoint_name(key, "key")
        value = checkpoint_name(project("v", x, spec.kv_heads), "value")
        front = self.front(key[:shared], value[:shared])
        own = tuple(part[shared:].reshape(rows, length, *part.shape[1:]) for part in (key, value))
        if self.is_mutable_collection("cache"):
            cache = self.remember(own, context.place)

        cosine, sine, mask = context.cosine, context.sine, context.row_mask
        if reads is not None:
            x, cosine, sine = (narrow(part, reads, length) for part in (x, cosine, sine))
            mask = take_reads(mask, reads)
        query = rotate(project("q", x, spec.heads), cosine, sine) * spec.head_size**-0.5
        query = checkpoint_name(query, "query")
        query = query.reshape(-1, spec.kv_heads, spec.heads // spec.kv_heads, spec.head_size)
        front_mask = self.front_mask(len(query), len(front[0]))
        if context.place is None:
            before = shared if reads is None else 0
            seen = attend(query, front, own, mask, front_mask, before, self.precision)
        else:
            seen = attend_cached(query, front, cache, mask, front_mask, self.precision)
        return Linear(spec.width, self.precision, name="o")(seen.reshape(len(seen), -1))

    def front(self, key, value):
        """The prefix's keys and values, then the shared positions': `[F, K, d]` each.

        Also written as the collection `baked` if the caller makes that mutable.
        """
        if self.has_variable("prefix", "k"):
            key = jnp.concatenate([self.get_variable("prefix", "k").astype(key.dtype), key])
            value = jnp.concatenate([self.get_variable("prefix", "v").astype(value.dtype), value])
        if self.is_mutable_collection("baked"):
            self.put_variable("baked", "k", key)
            self.put_variable("baked", "v", value)
        return key, value

    def front_mask(self, queries, size):
        """Additive float32[N, F] for N queries: hides positions of the prefix; None if none is."""
        if not self.has_variable("prefix", "visible"):
            return None
        visible = self.get_variable("prefix", "visible")
        mask = jnp.where(visible > 0, 0.0, MASKED).astype(jnp.float32)
        return jnp.broadcast_to(jnp.pad(mask, (0, size - len(mask))), (queries, size))

    def remember(self, own, place):
        """Writes the rows' keys and values `[R, T, K, d]` into the collection `cache`, in the
        layout of `attend_cached`: as all of it, or from `place` of C on."""
        cache = {"k": own[0].transpose(0, 2, 3, 1), "v": own[1].swapaxes(1, 2)}
        if place is not None:
            for name, part in cache.items():
                before, axis = self.get_variable("cache", name), POSITIONS_AXIS[name]
                cache[name] = jax.lax.dynamic_update_slice_in_dim(before, part, place, axis)
        for name, part in cache.items():
            self.put_variable("cache", name, part)
        return cache["k"], cache["v"]


def narrow(x, reads, length):
    """Takes int32[R, Q] positions of the rows in `[S + R*T, ...]`: `[R*Q, ...]`."""
    rows = x[len(x) - len(reads) * length :].reshape(len(reads), length, *x.shape[1:])
    return take_reads(rows, reads).reshape(-1, *x.shape[1:])


class FeedForward(nn.Module):
    spec: Spec
    precision: str | None

    @nn.compact
    def __call__(self, x):
        spec, precision = self.spec, self.precision
        gate = checkpoint_name(Linear(spec.feedforward, precision, name="gate")(x), "gate")
        up = checkpoint_name(Linear(spec.feedforward, precision, name="up")(x), "up")
        down = Linear(spec.width, precision, scaled_input=True, name="down")
        return down(nn.silu(gate) * up)


class Block(nn.Module):
    """One layer. With `reads`, only keys and values are computed at every position."""

    spec: Spec
    precision: str | None

    @nn.compact
    def __call__(self, x, context, reads=None):
        def norm(name):
            return nn.RMSNorm(epsilon=self.spec.norm_epsilon, dtype=x.dtype, name=name)

        attention = Attention(self.spec, self.precision, name="attention")
        attended = attention(norm("attention_norm")(x), context, reads)
        kept = x if reads is None else narrow(x, reads, context.row_mask.shape[1])
        x = checkpoint_name(kept + attended, "middle")
        feedforward = FeedForward(self.spec, self.precision, name="feedforward")
        return x + feedforward(norm("feedforward_norm")(x)), None
