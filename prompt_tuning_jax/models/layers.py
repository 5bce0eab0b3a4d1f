"""The layers of a decoder: linear layers, attention, feed-forward, and the block made of them.

One flat matrix of vectors `[N, D]` goes through the layers, N = S + R*T, so that a product reads
its weights once: the S shared positions, which are computed once, then R rows of T positions.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from prompt_tuning_jax.models.attention import MASKED, attend, attend_cached, front_share
from prompt_tuning_jax.models.positions import rotate
from prompt_tuning_jax.models.spec import FAR, Spec
from prompt_tuning_jax.quantization import full_matrix
from prompt_tuning_jax.sharding import gather

POSITIONS_AXIS = {"k": 3, "v": 2}  # in the leaves of the collection `cache`
ACTIVATIONS = {
    "silu": nn.silu,
    "relu": nn.relu,
    "gelu": functools.partial(nn.gelu, approximate=False),
    "gelu_tanh": nn.gelu,
}


class Context(NamedTuple):
    """What all layers read."""

    tables: Any  # cosine and sine, float32[N, 1, r/2], see `positions.rotary_tables`
    row_mask: jax.Array  # additive float32[R, T, T]; in a cached generation float32[R, 1, C]
    places: jax.Array  # int32[N], the position of each vector, counted on from the prefix
    # Where in the C positions of the cache a row's only position goes, in a cached generation.
    place: jax.Array | None = None


class Layer(NamedTuple):
    """What differs from layer to layer, int32[] each, or None if nothing does: which of the rotary
    tables it uses, and how many positions a query sees."""

    rope: Any = None
    window: Any = None


def layer_kinds(spec: Spec, positions: int) -> Layer:
    """Returns a `Layer` of int32[L]. `positions` is how many a row and its front have at most: a
    window of at least that size hides nothing, and is left out."""
    windows = spec.layer_windows if min(spec.layer_windows, default=FAR) < positions else ()
    parts = (np.array(part, np.int32) if part else None for part in (spec.layer_ropes, windows))
    return Layer(*parts)


def row_mask(segments: jax.Array, branches: jax.Array) -> jax.Array:
    """Returns the additive mask float32[R, T, T] of int32[R, T] segments and branches: a query sees
    no later key, those of its segment, and of these the trunk (branch 0) and its own branch."""
    length = segments.shape[1]
    causal = jnp.tril(jnp.ones((length, length), bool))
    segment = segments[:, :, None] == segments[:, None, :]
    branch = (branches[:, None, :] == 0) | (branches[:, :, None] == branches[:, None, :])
    return jnp.where(causal & segment & branch, 0.0, MASKED)


def take_reads(x: jax.Array, reads: jax.Array) -> jax.Array:
    """Takes int32[R, Q] positions of each row of `[R, T, ...]`: `[R, Q, ...]`."""
    return jax.vmap(lambda row, index: row[index])(x, reads)


def times(x, weight, precision: str | None, dtype=None, writes=False) -> jax.Array:
    """Multiplies `[N, in]` by a matrix `[out, in]`: `[N, out]` in their dtype, or the one given.
    While a text is written, `x` has few rows: a CPU then takes a third less time for the matrix
    times `x` transposed. The barrier keeps XLA from turning the product back."""
    axes = ((1,), (1,)), ((), ())
    if not (writes and 1 < len(x) <= 64 and jax.default_backend() == "cpu"):
        return jax.lax.dot_general(x, weight, axes, precision, preferred_element_type=dtype)
    y = jax.lax.dot_general(weight, x, axes, precision, preferred_element_type=dtype)
    return jax.lax.optimization_barrier(y).T


class Linear(nn.Module):
    """A frozen matrix, stored `[out, in]` as model files have it: `[N, in]` to `[N, out]`. A method
    may add low-rank matrices (`lora`) and scale what it gives, or what it reads (`scale`)."""

    features: int
    precision: str | None
    bias: bool = False
    dtype: Any = None
    scaled_input: bool = False

    @nn.compact
    def __call__(self, x):
        shape = self.features, x.shape[-1]
        if self.is_initializing():
            weight = self.param("weight", nn.initializers.lecun_normal(-1, -2), shape, x.dtype)
        else:  # it may be in int8, or in parts over devices
            weight = full_matrix(self.get_variable("params", "weight"), shape)
        if self.scaled_input:
            x = self.scale(x)
        y = times(x, weight, self.precision, self.dtype, self.is_mutable_collection("cache"))
        if self.has_variable("lora", "a"):
            a, b = (self.get_variable("lora", name).astype(x.dtype) for name in "ab")
            a, b = gather(a, (b.shape[1], a.shape[1])), gather(b, (self.features, b.shape[1]))
            y += times(times(x, a, self.precision), b, self.precision, self.dtype)
        if self.bias:
            y += self.param("bias", nn.initializers.zeros, (self.features,), x.dtype)
        return y if self.scaled_input else self.scale(y)

    def scale(self, x):
        """Multiplies `[N, size]` by the layer's scale, if any."""
        if self.has_variable("scale", "scale"):
            x = x * self.get_variable("scale", "scale").astype(x.dtype)
        return x


def norm(spec: Spec, name: str | None, dtype) -> nn.Module:
    """Returns the model's norm over the last axis: in float32, rounded to a dtype at the end."""
    if spec.norm == "layer":
        epsilon = spec.norm_epsilon
        return nn.LayerNorm(epsilon=epsilon, dtype=dtype, use_fast_variance=False, name=name)
    if spec.norm_offset:
        return OffsetNorm(spec.norm_epsilon, spec.norm_offset, dtype, name=name)
    return nn.RMSNorm(epsilon=spec.norm_epsilon, dtype=dtype, name=name)


class OffsetNorm(nn.Module):
    """RMSNorm whose scale is an offset and a weight (Gemma: 1 + w)."""

    epsilon: float
    offset: float
    dtype: Any

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.zeros, x.shape[-1:], x.dtype)
        y = nn.RMSNorm(epsilon=self.epsilon, use_scale=False, dtype=jnp.float32)(x)
        return (y * (self.offset + scale.astype(jnp.float32))).astype(self.dtype)


class Attention(nn.Module):
    spec: Spec
    precision: str | None

    @nn.compact
    def __call__(self, x, context, layer, reads=None):
        """`[N, D]` to `[N, D]`, or to `[R*Q, D]` if `reads` int32[R, Q] says which are needed."""
        spec = self.spec
        rows, length = context.row_mask.shape[:2]
        shared = x.shape[0] - rows * length

        def project(name, x, heads, tables=None):
            y = Linear(heads * spec.head_size, self.precision, name in spec.biases, name=name)(x)
            normed = spec.qk_norm if name != "v" else ""
            if normed == "row":
                y = norm(spec, f"{name}_norm", y.dtype)(y)
            y = y.reshape(-1, heads, spec.head_size)
            if normed == "head":
                y = norm(spec, f"{name}_norm", y.dtype)(y)
            return y if tables is None else rotate(y, *tables)

        tables, mask, places = context.tables, context.row_mask, context.places
        if layer.rope is not None:
            tables = tuple(part[layer.rope] for part in tables)
        key = checkpoint_name(project("k", x, spec.kv_heads, tables), "key")
        value = checkpoint_name(project("v", x, spec.kv_heads), "value")
        front = self.front("k", key[:shared]), self.front("v", value[:shared])
        own = tuple(part[shared:].reshape(rows, length, *part.shape[1:]) for part in (key, value))
        if self.is_mutable_collection("cache"):
            cache = self.remember(own, context.place)
        if layer.window is not None:
            mask = jnp.where(self.distances(context, shared) < layer.window, mask, MASKED)

        if reads is not None:
            x, places = narrow(x, reads, length), narrow(places, reads, length)
            mask = take_reads(mask, reads)
            if tables is not None:
                tables = tuple(narrow(part, reads, length) for part in tables)
        scale = spec.scale or spec.head_size**-0.5
        query = checkpoint_name(project("q", x, spec.heads, tables) * scale, "query")
        query = query.reshape(-1, spec.kv_heads, spec.heads // spec.kv_heads, spec.head_size)
        front_mask = self.front_mask(places, len(front[0]), layer.window)
        options = spec.attention_cap, self.precision
        self.note_share(query, front, own, mask, front_mask, *options)
        if context.place is None:
            before = shared if reads is None else 0
            seen = attend(query, front, own, mask, front_mask, before, *options)
        else:
            seen = attend_cached(query, front, cache, mask, front_mask, *options)
        output = Linear(spec.width, self.precision, "o" in spec.biases, name="o")
        return output(seen.reshape(len(seen), -1))

    def distances(self, context, shared):
        """How far keys stand before queries: int32[R, T, T], or [R, 1, C] in cached generation."""
        if context.place is None:
            own = context.places[shared:].reshape(context.row_mask.shape[:2])
            return own[:, :, None] - own[:, None, :]
        # What a row sees of the cache is in order, and ends with its own position.
        seen = (context.row_mask == 0).astype(jnp.int32)
        return jnp.flip(jnp.cumsum(jnp.flip(seen, -1), -1), -1) - 1

    def front(self, name, part):
        """Returns the prefix's keys ('k') or values ('v') with the shared positions' behind them:
        `[F, K, d]`. Also written as the collection `baked` if the caller makes that mutable."""
        if self.has_variable("prefix", name):
            part = jnp.concatenate([self.get_variable("prefix", name).astype(part.dtype), part])
        if self.is_mutable_collection("baked"):
            self.put_variable("baked", name, part)
        return part

    def front_mask(self, places, size, window):
        """Additive float32[N, F] for N queries at their places: hides positions of the prefix, and
        what stands farther away than the window; None if nothing is hidden."""
        masks = []
        if self.has_variable("prefix", "visible"):
            visible = self.get_variable("prefix", "visible")
            shown = jnp.pad(visible > 0, (0, size - len(visible)), constant_values=True)
            masks.append(jnp.broadcast_to(shown, (len(places), size)))
        if window is not None:
            masks.append(places[:, None] - jnp.arange(size) < window)
        return jnp.where(functools.reduce(jnp.logical_and, masks), 0.0, MASKED) if masks else None

    def note_share(self, *asked):
        """Writes `front_share` as the collection `attention` if the caller makes that mutable."""
        if self.is_mutable_collection("attention") and not self.is_initializing():
            self.put_variable("attention", "front", front_share(*asked))

    def remember(self, own, place):
        """Writes the rows' keys and values `[R, T, K, d]` into the collection `cache`, as
        `attend_cached` reads them: as all of it, or from `place` of C on."""
        cache = {"k": own[0].transpose(0, 2, 3, 1), "v": own[1].swapaxes(1, 2)}
        for name, part in cache.items():
            if place is not None:
                before, axis = self.get_variable("cache", name), POSITIONS_AXIS[name]
                cache[name] = jax.lax.dynamic_update_slice_in_dim(before, part, place, axis)
            self.put_variable("cache", name, cache[name])
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
        spec = self.spec

        def linear(name, features, **options):
            return Linear(features, self.precision, name in spec.biases, name=name, **options)

        activate = ACTIVATIONS[spec.activation]
        gate = checkpoint_name(linear("gate", spec.feedforward)(x), "gate") if spec.gated else None
        up = checkpoint_name(linear("up", spec.feedforward)(x), "up")
        inner = activate(up) if gate is None else activate(gate) * up
        return linear("down", spec.width, scaled_input=True)(inner)


class Block(nn.Module):
    """One layer. With `reads`, only keys and values are computed at every position."""

    spec: Spec
    precision: str | None

    @nn.compact
    def __call__(self, x, context, layer, reads=None):
        spec = self.spec

        def normalise(name, x, *placements):
            return norm(spec, name, x.dtype)(x) if spec.placement in placements else x

        def half(name, x, function, keep):
            """What `keep` gives and what a function makes of `x`, with the norms around it."""
            made = function(normalise(f"{name}_norm", x, "before", "both"))
            made = normalise(f"{name}_out_norm", made, "output", "both")
            # `keep()` comes last: gradients are summed in this order.
            return normalise(f"{name}_norm", keep() + made, "after")

        def kept():
            return x if reads is None else narrow(x, reads, context.row_mask.shape[1])

        attention = Attention(spec, self.precision, name="attention")
        middle = half("attention", x, lambda x: attention(x, context, layer, reads), kept)
        middle = checkpoint_name(middle, "middle")
        feedforward = FeedForward(spec, self.precision, name="feedforward")
        given = kept() if spec.parallel else middle
        return half("feedforward", given, feedforward, lambda: middle), None
