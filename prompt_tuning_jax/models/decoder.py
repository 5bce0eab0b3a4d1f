"""A frozen decoder-only language model (the Llama family) as a Flax linen module.

Its weights are the collection `params`. What a method trains reaches it as further collections
(`sites.py`): `prompt`, vectors that stand where a token id is negative; `prefix`, keys and values
in front of every layer's own; `lora` and `scale`, which change what a linear layer gives. All
layers but the last are a scan over weights `[L-1, ...]`. The last one stands apart: it is computed
only at the positions that are read.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from prompt_tuning_jax.models.layers import Block, Context, Linear, row_mask, times
from prompt_tuning_jax.models.positions import rotary_tables
from prompt_tuning_jax.models.sites import LAYERED
from prompt_tuning_jax.models.spec import Spec

# What the backward pass keeps of a layer. Named values beat "every matrix product": the attention's
# output costs little to keep and much to compute again, the last product of a layer is never read.
SAVED = ("query", "key", "value", "attended", "normalizer", "middle", "gate", "up")
REMAT = {
    "named": jax.checkpoint_policies.save_only_these_names(*SAVED),
    "full": jax.checkpoint_policies.nothing_saveable,
    "none": jax.checkpoint_policies.everything_saveable,
}


class Decoder(nn.Module):
    """The frozen model: `__call__` gives hidden states, `logits` the scores of the vocabulary.

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
        self.layers = nn.scan(
            nn.remat(Block, policy=REMAT[self.remat], prevent_cse=False),
            variable_axes=dict.fromkeys(("params", *LAYERED, "baked", "cache"), 0),
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=spec.layers - 1,
        )(spec, self.precision)
        self.last = Block(spec, self.precision)
        self.final_norm = nn.RMSNorm(epsilon=spec.norm_epsilon)
        if not spec.tied_head:
            self.head = Linear(spec.vocabulary, self.precision, jnp.float32)

    def __call__(self, shared, tokens, positions, segments, branches, reads):
        """Returns hidden states after the final norm at the positions that are read, `[R, Q, D]` in
        the dtype of the weights.

        Args:
          shared: int32[S], the front of the input that all rows share; negative ids are slots.
          tokens, positions, segments, branches: int32[R, T] (`data.batch.Batch`).
          reads: int32[R, Q], the positions of each row that are needed.
        """
        places = jnp.concatenate([jnp.arange(shared.shape[0]), positions.reshape(-1)])
        if "prefix" in self.variables:
            places = places + len(self.variables["prefix"]["last"]["attention"]["k"])
        context = Context(*rotary_tables(self.spec, places), row_mask(segments, branches))
        x = self.vectors(jnp.concatenate([shared, tokens.reshape(-1)]))
        x, _ = self.layers(x, context)
        x, _ = self.last(x, context, reads)
        return self.final_norm(x).astype(x.dtype).reshape(*reads.shape, -1)

    def vectors(self, ids):
        """Returns `[N, D]` for int32[N] ids: slot j, id -1-j, is vector j of the prompt.

        A slot without a vector is NaN: any number would silently be another prompt.
        """
        x = self.embed(jnp.maximum(ids, 0))
        slots = jnp.full_like(x, jnp.nan)
        if self.has_variable("prompt", "vectors"):
            prompt = jnp.asarray(self.get_variable("prompt", "vectors"), x.dtype)
            slots = prompt.at[jnp.maximum(-1 - ids, 0)].get(mode="fill", fill_value=jnp.nan)
        return jnp.where((ids < 0)[:, None], slots, x)

    def finish(self, x):
        """Returns float32[..., V] logits for the output of the last layer, `[..., D]`."""
        return self.logits(self.final_norm(x).astype(x.dtype))

    def logits(self, hidden):
        """Returns float32[..., V] logits for hidden states `[..., D]`."""
        # One axis of rows: jax 0.7 has no float32 sums of half precision for more, on a CPU.
        rows = hidden.reshape(-1, self.spec.width)
        if self.spec.tied_head:
            logits = times(rows, self.embed.embedding, self.precision, jnp.float32)
        else:
            logits = self.head(rows)
        return logits.reshape(*hidden.shape[:-1], self.spec.vocabulary)
