"""A frozen decoder-only language model (the Llama family) as a Flax linen module.

One flat matrix of vectors `[N, D]` goes through the layers, N = S + R*T: the S shared positions,
which do not depend on the example and are computed once, then R rows of T positions. One matrix and
not two, so that every weight is read once a product; under `shard_map` each device has its own.

What a method trains reaches the model as variable collections beside the frozen `params`: `prompt`
(vectors that stand where a token id is negative) and `prefix` (keys and values in front of every
layer's own). `sites` is the table of all that the model consumes and `bind` refuses any other leaf.
When generating, `cache` holds the rows' keys and values: `prefill` fills it, `decode` adds to it.
"""

import operator
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from prompt_tuning_jax.errors import UserError, nearest
from prompt_tuning_jax.models.attention import MASKED, attend, attend_cached
from prompt_tuning_jax.models.spec import Spec

# What the backward pass keeps of a layer. Named values beat "every matrix product": the attention's
# output costs little to keep and much to compute again, the last product of a layer is never read.
SAVED = ("query", "key", "value", "attended", "normalizer", "middle", "gate", "up")
REMAT = {
    "named": jax.checkpoint_policies.save_only_these_names(*SAVED),
    "full": jax.checkpoint_policies.nothing_saveable,
    "none": jax.checkpoint_policies.everything_saveable,
}

CACHED = {"k": 3, "v": 2}  # the axis of positions in what the collection `cache` holds


class Context(NamedTuple):
    """What every layer reads and none changes: rotary tables float32[N, 1, d/2], and the additive
    mask float32[R, T, T] within the rows. Where rows are one position each, which goes to `place`
    of a cache of C, the mask is float32[R, 1, C]."""

    cosine: jax.Array
    sine: jax.Array
    row_mask: jax.Array
    place: jax.Array | None = None


def frequencies(spec: Spec) -> np.ndarray:
    """Radians a position of each pair of the rotary embedding, float32[d/2].

    Rounded where transformers rounds: another last bit of a frequency is 1e-4 of an angle at
    position 1,500.
    """
    exponents = np.arange(0, spec.head_size, 2, dtype=np.float32) / np.float32(spec.head_size)
    powers = spec.rope_theta ** exponents.astype(np.float64)
    plain = np.float32(1) / powers.astype(np.float32)
    scaling = spec.rope_scaling
    if scaling is None:
        return plain
    # Llama 3.1: long wavelengths are stretched, short ones kept, with a ramp between the two.
    turns = scaling.original_max_positions * plain / np.float32(2 * np.pi)
    span = scaling.high_freq_factor - scaling.low_freq_factor
    kept = np.clip((turns - scaling.low_freq_factor) / span, 0.0, 1.0)
    return plain * (kept + (1.0 - kept) / scaling.factor)


def rotary(spec: Spec, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine, float32[N, 1, d/2], of the rotary embedding at int32[N] positions."""
    angles = positions.astype(jnp.float32)[:, None, None] * frequencies(spec)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, cosine: jax.Array, sine: jax.Array) -> jax.Array:
    """Turns `[N, heads, d]` by its position; the two halves of d are the pairs."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = (first * cosine - second * sine, second * cosine + first * sine)
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)


def row_mask(segments: jax.Array, branches: jax.Array) -> jax.Array:
    """Additive mask float32[R, T, T]: a key is seen if it does not come after the query, is of the
    same segment, and is of the trunk (branch 0) or of the query's own branch."""
    length = segments.shape[1]
    causal = jnp.tril(jnp.ones((length, length), bool))
    segment = segments[:, :, None] == segments[:, None, :]
    branch = (branches[:, None, :] == 0) | (branches[:, :, None] == branches[:, None, :])
    return jnp.where(causal & segment & branch, 0.0, MASKED)


def take_rows(x: jax.Array, reads: jax.Array) -> jax.Array:
    """`[R, T, ...]` at int32[R, Q] positions of each row: `[R, Q, ...]`."""
    return jax.vmap(lambda row, index: row[index])(x, reads)


def times(x: jax.Array, weight: jax.Array, precision: str | None, dtype=None) -> jax.Array:
    """`[N, in]` times a matrix `[out, in]`: `[N, out]` in the dtype of both, or the one given."""
    axes = ((1,), (1,)), ((), ())
    return jax.lax.dot_general(x, weight, axes, precision, preferred_element_type=dtype)


class Linear(nn.Module):
    """A frozen matrix, stored `[out, in]` as model files have it: `[N, in]` to `[N, out]`.

    A CPU multiplies few rows by it a quarter faster than by its transpose, and many as fast.
    """

    features: int
    precision: str | None
    dtype: Any = None

    @nn.compact
    def __call__(self, x):
        start = nn.initializers.lecun_normal(in_axis=-1, out_axis=-2)
        weight = self.param("weight", start, (self.features, x.shape[-1]), x.dtype)
        return times(x, weight, self.precision, self.dtype)


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
            x, cosine, sine = (
                take_rows(part[shared:].reshape(rows, length, *part.shape[1:]), reads)
                .reshape(-1, *part.shape[1:])
                for part in (x, cosine, sine)
            )  # fmt: skip
            mask = take_rows(mask, reads)
        query = rotate(project("q", x, spec.heads), cosine, sine) * spec.head_size**-0.5
        query = checkpoint_name(query, "query")
        query = query.reshape(-1, spec.kv_heads, spec.heads // spec.kv_heads, spec.head_size)
        if context.place is None:
            before = shared if reads is None else 0
            seen = attend(query, front, own, mask, before, self.precision)
        else:
            seen = attend_cached(query, front, cache, mask, self.precision)
        return Linear(spec.width, self.precision, name="o")(seen.reshape(len(seen), -1))

    def front(self, key, value):
        """The prefix's keys and values, then the shared positions': `[F, K, d]` each.

        Written out as the collection `baked` where a caller makes it mutable.
        """
        if self.has_variable("prefix", "k"):
            key = jnp.concatenate([self.get_variable("prefix", "k").astype(key.dtype), key])
            value = jnp.concatenate([self.get_variable("prefix", "v").astype(value.dtype), value])
        if self.is_mutable_collection("baked"):
            self.put_variable("baked", "k", key)
            self.put_variable("baked", "v", value)
        return key, value

    def remember(self, own, place):
        """Writes the rows' keys and values `[R, T, K, d]` into the collection `cache` as
        `attend_cached` reads them, in place of what it holds or from `place` of C on."""
        cache = {"k": own[0].transpose(0, 2, 3, 1), "v": own[1].swapaxes(1, 2)}
        for name, part in cache.items():
            if place is not None:
                before = self.get_variable("cache", name)
                axis = CACHED[name]
                part = jax.lax.dynamic_update_slice_in_dim(before, part, place, axis)
            self.put_variable("cache", name, part)
        return tuple(self.get_variable("cache", name) for name in "kv")


class FeedForward(nn.Module):
    spec: Spec
    precision: str | None

    @nn.compact
    def __call__(self, x):
        spec, precision = self.spec, self.precision
        gate = checkpoint_name(Linear(spec.feedforward, precision, name="gate")(x), "gate")
        up = checkpoint_name(Linear(spec.feedforward, precision, name="up")(x), "up")
        return Linear(spec.width, precision, name="down")(nn.silu(gate) * up)


class Block(nn.Module):
    """One layer. With `reads`, everything but keys and values is computed only where it is read."""

    spec: Spec
    precision: str | None

    @nn.compact
    def __call__(self, x, context, reads=None):
        def norm(name):
            return nn.RMSNorm(epsilon=self.spec.norm_epsilon, dtype=x.dtype, name=name)

        attention = Attention(self.spec, self.precision, name="attention")
        attended = attention(norm("attention_norm")(x), context, reads)
        if reads is not None:
            rows, length = context.row_mask.shape[:2]
            x = take_rows(x[-rows * length :].reshape(rows, length, -1), reads)
            x = x.reshape(-1, x.shape[-1])
        x = checkpoint_name(x + attended, "middle")
        feedforward = FeedForward(self.spec, self.precision, name="feedforward")
        return x + feedforward(norm("feedforward_norm")(x)), None


class Decoder(nn.Module):
    """The frozen model. Calls: `__call__` for hidden states, `logits` for the head.

    Attributes:
      spec: sizes and options.
      remat: what the backward pass keeps: 'named' (fastest measured), 'full' (keeps nothing, the
        least memory) or 'none' (keeps everything).
      precision: of the matrix products, e.g. 'highest'; None is the platform's default.
    """

    spec: Spec
    remat: str = "named"
    precision: str | None = None

    def setup(self):
        spec = self.spec
        self.embed = nn.Embed(spec.vocabulary, spec.width)
        block = nn.remat(Block, policy=REMAT[self.remat], prevent_cse=False)
        self.layers = nn.scan(
            block,
            variable_axes={"params": 0, "prefix": 0, "baked": 0, "cache": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=spec.layers - 1,
        )(spec, self.precision)
        self.last = Block(spec, self.precision)
        self.final_norm = nn.RMSNorm(epsilon=spec.norm_epsilon)
        if not spec.tied_head:
            self.head = Linear(spec.vocabulary, self.precision, jnp.float32)

    def __call__(self, shared, tokens, positions, segments, branches, reads):
        """Hidden states after the final norm, where they are read.

        Args:
          shared: int32[S], the front of the input that all rows share; negative ids are slots.
          tokens, positions, segments, branches: int32[R, T] (`data.batch.Batch`).
          reads: int32[R, Q], the positions of each row that are needed.

        Returns:
          `[R, Q, D]` in the dtype of the weights.
        """
        start = self.prefix_length()
        size = shared.shape[0]
        places = jnp.concatenate([jnp.arange(size), positions.reshape(-1)]) + start
        context = Context(*rotary(self.spec, places), row_mask(segments, branches))
        x = self.vectors(jnp.concatenate([shared, tokens.reshape(-1)]))
        x, _ = self.layers(x, context)
        x, _ = self.last(x, context, reads)
        return self.final_norm(x).astype(x.dtype).reshape(*reads.shape, -1)

    def vectors(self, ids):
        """`[N, D]` for int32[N] ids: slot j, id -1-j, is vector j of the collection `prompt`.

        A slot that no vector fills is NaN: any number would be a model that nobody asked for.
        """
        x = self.embed(jnp.maximum(ids, 0))
        slots = jnp.full_like(x, jnp.nan)
        if self.has_variable("prompt", "vectors"):
            prompt = jnp.asarray(self.get_variable("prompt", "vectors"), x.dtype)
            slots = prompt.at[jnp.maximum(-1 - ids, 0)].get(mode="fill", fill_value=jnp.nan)
        return jnp.where((ids < 0)[:, None], slots, x)

    def prefix_length(self):
        """How many positions the prefix takes: the text's own begin after it."""
        prefix = self.variables.get("prefix")
        return prefix["last"]["attention"]["k"].shape[0] if prefix else 0

    def finish(self, x):
        """float32[..., V] logits for what the last layer gives, `[..., D]`."""
        return self.logits(self.final_norm(x).astype(x.dtype))

    def logits(self, hidden):
        """float32[..., V] for hidden states `[..., D]`."""
        # One axis of rows: jax 0.7 has no float32 sums of half precision for more, on a CPU.
        rows = hidden.reshape(-1, self.spec.width)
        if self.spec.tied_head:
            logits = times(rows, self.embed.embedding, self.precision, jnp.float32)
        else:
            logits = self.head(rows)
        return logits.reshape(*hidden.shape[:-1], self.spec.vocabulary)


def sites(spec: Spec) -> dict[tuple[str, str], tuple[int | None, ...]]:
    """All that a method can hand to the model: (collection, leaf) to shape, None where free."""
    stack = (spec.layers, None, spec.kv_heads, spec.head_size)
    return {
        ("prompt", "vectors"): (None, spec.width),
        ("prefix", "k"): stack,
        ("prefix", "v"): stack,
    }


def bind(spec: Spec, collections: Mapping[str, Mapping[str, jax.Array]]) -> dict:
    """Collections as a method made them (`[L, ...]`), laid out as the module reads them.

    Raises:
      UserError: a leaf that the model does not consume, or one of another shape.
    """
    table = sites(spec)
    for collection, leaves in collections.items():
        for leaf, array in leaves.items():
            check_site(table, collection, leaf, array)
    bound: dict[str, Any] = {name: dict(leaves) for name, leaves in collections.items()}
    if "prefix" in bound:
        if (
            len({array.shape for array in bound["prefix"].values()}) != 1
            or len(bound["prefix"]) != 2
        ):
            raise UserError("a prefix needs 'k' and 'v' of the same shape [L, P, K, d].")
        bound["prefix"] = {
            "layers": {"attention": {name: part[:-1] for name, part in bound["prefix"].items()}},
            "last": {"attention": {name: part[-1] for name, part in bound["prefix"].items()}},
        }
    return bound


def check_site(table, collection, leaf, array):
    """Refuses a leaf that is not in the table of `sites`, or whose shape is not the table's."""
    if (collection, leaf) not in table or isinstance(array, Mapping):
        names = [f"{first}/{second}" for first, second in table]
        path = f"{collection}/{leaf}"
        raise UserError(
            f"the model has no place for '{path}'{nearest(path, names)}: "
            f"it takes {', '.join(names)}."
        )
    wanted, shape = table[collection, leaf], array.shape
    if len(shape) != len(wanted) or any(
        given == 0 or size not in (None, given) for size, given in zip(wanted, shape, strict=True)
    ):
        free = tuple("1 or more" if size is None else size for size in wanted)
        raise UserError(f"'{collection}/{leaf}' has shape {tuple(shape)}, the model takes {free}.")


def unbind_baked(baked) -> dict:
    """The collection `baked` of a call as a prefix of `[L, F, K, d]` keys and values."""
    layers, last = baked["layers"]["attention"], baked["last"]["attention"]
    return {name: jnp.concatenate([layers[name], last[name][None]]) for name in ("k", "v")}


def split_layers(module: Decoder, params, collections: Mapping[str, Mapping[str, jax.Array]]):
    """The variables of each of the L layers by themselves, on the default device, for `decode`.

    A scan copies each layer's weights out of its stack, which costs as much as reading them once
    more: little beside long rows, half of the time where a row is one token. On a CPU the parts
    are views; elsewhere they take the memory of the layers again.
    """
    stacks, last = {"params": params["layers"]}, {"params": params["last"]}
    if prefix := bind(module.spec, collections).get("prefix"):
        stacks["prefix"], last["prefix"] = prefix["layers"], prefix["last"]
    if jax.default_backend() == "cpu":
        stacks = jax.device_get(stacks)
    return jax.device_put([*unstack(stacks, module.spec.layers - 1), last])


def unstack(stacks, length: int) -> list:
    """The parts of a tree of `[length, ...]` arrays."""
    return [jax.tree.map(operator.itemgetter(number), stacks) for number in range(length)]


def prefill(module: Decoder, params, collections, tokens, positions, segments, size: int):
    """The first call of a generation: whole rows, of which only the end is read.

    Args:
      module, params: the frozen model.
      collections: as for `bind`; the shared positions are in the prefix.
      tokens, positions, segments: int32[R, T], an example each; segment 0 is padding.
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
        rest = [
            (0, size - part.shape[axis]) if axis == CACHED[name] else (0, 0) for axis in range(4)
        ]
        return jnp.pad(part, rest)

    stacks, last = (kept["cache"][name]["attention"] for name in ("layers", "last"))
    layers = [*unstack(stacks, module.spec.layers - 1), last]
    return logits, [{name: widen(name, part) for name, part in layer.items()} for layer in layers]


def decode(module: Decoder, params, layers, cache, tokens, positions, visible, place):
    """One more token in each row, behind what the cache holds.

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
    prefix = layers[-1].get("prefix")
    start = prefix["attention"]["k"].shape[0] if prefix else 0
    mask = jnp.where(visible, 0.0, MASKED)[:, None]
    context = Context(*rotary(module.spec, positions + start), mask, place)
    x = module.apply({"params": params}, tokens, method="vectors")
    block, written = Block(module.spec, module.precision), []
    for layer, before in zip(layers, cache, strict=True):
        variables = {**layer, "cache": {"attention": before}}
        (x, _), kept = block.apply(variables, x, context, mutable=["cache"])
        written.append(kept["cache"]["attention"])
    return module.apply({"params": params}, x, method="finish"), written
