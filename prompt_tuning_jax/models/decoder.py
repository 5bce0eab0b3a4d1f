"""A frozen decoder-only language model as a Flax linen module, with the options of its `Spec`.

Its weights are the collection `params`. What a method trains reaches it as further collections
(`sites.py`): `prompt`, vectors that stand where a token id is negative; `prefix`, keys and values
in front of every layer's own; `lora` and `scale`, which change what a linear layer gives. All
layers but the last are a scan over weights `[L-1, ...]`; the last is computed only at the positions
that are read.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util

from prompt_tuning_jax.models import layers
from prompt_tuning_jax.models.layers import Block, Context, Linear, layer_kinds, norm
from prompt_tuning_jax.models.positions import rotary_tables
from prompt_tuning_jax.models.spec import Spec
from prompt_tuning_jax.quantization import full_matrix

LAYERED = ("prefix", "lora", "scale")  # collections that hold something for every layer

# What the backward pass keeps of a layer: the attention's output costs little to keep and much to
# compute again, the last product of a layer is never read.
SAVED = ("query", "key", "value", "attended", "normalizer", "middle", "gate", "up")
REMAT = {
    "named": jax.checkpoint_policies.save_only_these_names(*SAVED),
    "full": jax.checkpoint_policies.nothing_saveable,
    "none": jax.checkpoint_policies.everything_saveable,
}


class Decoder(nn.Module):
    """The frozen model: `__call__` gives hidden states, `logits` the scores of the vocabulary."""

    spec: Spec
    # What the backward pass keeps: some ('named', the fastest), nothing ('full') or all ('none').
    remat: str = "named"
    precision: str | None = None  # of the products, e.g. 'highest'; None is the platform's default

    def setup(self):
        spec = self.spec
        self.embed = nn.Embed(spec.vocabulary, spec.prompt_width)
        if spec.embedding_width:
            self.project_in = Linear(spec.width, self.precision)
            self.project_out = Linear(spec.embedding_width, self.precision)
        if spec.learned_positions:
            self.positions = nn.Embed(spec.max_positions + spec.position_offset, spec.width)
        self.layers = nn.scan(
            nn.remat(Block, policy=REMAT[self.remat], prevent_cse=False),
            variable_axes=dict.fromkeys(("params", *LAYERED, "baked", "cache", "attention"), 0),
            split_rngs={"params": True},
            in_axes=(nn.broadcast, 0),
            length=spec.layers - 1,
        )(spec, self.precision)
        self.last = Block(spec, self.precision)
        if spec.final_norm:
            self.final_norm = norm(spec, None, None)
        if not spec.tied_head:
            self.head = Linear(spec.vocabulary, self.precision, dtype=jnp.float32)

    def __call__(self, shared, tokens, positions, segments, branches, reads):
        """Returns hidden states after the final norm at the positions that are read, `[R, Q, D]` in
        the dtype of the weights. The arguments are those of a `data.batch.Batch`."""
        prefix = self.variables.get("prefix")
        before = len(prefix["last"]["attention"]["k"]) if prefix else 0
        places = before + jnp.concatenate([jnp.arange(len(shared)), positions.reshape(-1)])
        mask = layers.row_mask(segments, branches)
        context = Context(rotary_tables(self.spec, places), mask, places)
        kinds = layer_kinds(self.spec, before + len(shared) + tokens.shape[1])
        x = self.begin(jnp.concatenate([shared, tokens.reshape(-1)]), places)
        x, _ = self.layers(x, context, jax.tree.map(lambda part: part[:-1], kinds))
        x, _ = self.last(x, context, jax.tree.map(lambda part: part[-1], kinds), reads)
        return self.normalise(x).reshape(*reads.shape, -1)

    def begin(self, ids, places):
        """Returns `[N, D]`, what the first layer reads for int32[N] ids at their positions."""
        x = self.vectors(ids)
        if self.spec.embedding_width:
            x = self.project_in(x)
        if self.spec.learned_positions:
            x += self.positions(places + self.spec.position_offset)
        return x

    def vectors(self, ids):
        """Returns `[N, E]` for int32[N] ids: slot j, id -1-j, is vector j of the prompt, or NaN
        without one: any number would silently be another prompt."""
        x = jnp.take(self.embedding(), jnp.maximum(ids, 0), axis=0)
        if self.spec.embedding_scale != 1:
            x *= jnp.asarray(self.spec.embedding_scale, x.dtype)
        slots = jnp.full_like(x, jnp.nan)
        if self.has_variable("prompt", "vectors"):
            prompt = jnp.asarray(self.get_variable("prompt", "vectors"), x.dtype)
            slots = prompt.at[jnp.maximum(-1 - ids, 0)].get(mode="fill", fill_value=jnp.nan)
        return jnp.where((ids < 0)[:, None], slots, x)

    def embedding(self):
        """Returns `[V, E]`, the embeddings of all tokens."""
        if self.is_initializing():
            return self.embed.embedding
        shape = self.spec.vocabulary, self.spec.prompt_width
        return full_matrix(self.variables["params"]["embed"]["embedding"], shape)

    def normalise(self, x):
        """The final norm, if the model has one."""
        return self.final_norm(x).astype(x.dtype) if self.spec.final_norm else x

    def finish(self, x):
        """Returns float32[..., V] logits for the output of the last layer, `[..., D]`."""
        return self.logits(self.normalise(x))

    def logits(self, hidden):
        """Returns float32[..., V] logits for hidden states `[..., D]`."""
        # One axis of rows: jax 0.7 has no float32 sums of half precision for more, on a CPU.
        rows, cap = hidden.reshape(-1, self.spec.width), self.spec.final_cap
        if self.spec.embedding_width:
            rows = self.project_out(rows)
        if self.spec.tied_head:
            writes = self.is_mutable_collection("cache")
            logits = layers.times(rows, self.embedding(), self.precision, jnp.float32, writes)
        else:
            logits = self.head(rows)
        if cap:
            logits = cap * jnp.tanh(logits / cap)
        return logits.reshape(*hidden.shape[:-1], self.spec.vocabulary)


@functools.lru_cache(maxsize=64)
def param_shapes(spec: Spec) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every leaf of the frozen tree by its path: the matrices of all layers
    but the last are one stack, those of the last layer stand on their own."""

    def run(module):
        ids = jnp.zeros((1, 1), jnp.int32)
        return module.finish(module(ids[0, :0], ids, ids, ids, ids, ids))

    tree = jax.eval_shape(lambda: Decoder(spec).init(jax.random.key(0), method=run))
    flat = traverse_util.flatten_dict(tree["params"], sep="/")
    return {path: leaf.shape for path, leaf in flat.items()}
