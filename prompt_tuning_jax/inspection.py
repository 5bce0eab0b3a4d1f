"""What can be read from virtual tokens: their nearest tokens, and what the model makes of them."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prompt_tuning_jax.data import batch as batching
from prompt_tuning_jax.data.example import Example
from prompt_tuning_jax.models.cached import bake
from prompt_tuning_jax.models.language_model import LanguageModel
from prompt_tuning_jax.models.sites import PREFIX, Given, bind


def nearest_tokens(lm: LanguageModel, vectors: Any, count: int) -> list[dict[str, list]]:
    """Returns the nearest tokens of each of the virtual tokens [P, D], by 'cosine' and by 'product'
    with the embeddings as the model reads them: id, token, that value and the Euclidean distance.
    Rows behind the vocabulary are left out."""
    known = {*lm.tokenizer.text_ids, *lm.tokenizer.special_ids}
    ids = np.array(sorted(number for number in known if number < lm.spec.vocabulary))
    words, own = lm.embed(ids), lm.embed(-1 - np.arange(len(vectors)), vectors)
    product = jnp.einsum("pe,ve->pv", own, words, precision="highest")
    sizes = jnp.linalg.norm(own, axis=1)[:, None] * jnp.linalg.norm(words, axis=1)
    found: list[dict[str, list]] = [{} for _ in own]
    for by, values in {"cosine": product / jnp.maximum(sizes, 1e-30), "product": product}.items():
        best, places = map(np.asarray, jax.lax.top_k(values, count))
        distances = np.linalg.norm(own[:, None] - words[places], axis=-1)
        for row, each in enumerate(found):
            each[by] = [
                {"id": number, "token": lm.tokenizer.decode([number]), by: value, "distance": far}
                for number, value, far in zip(
                    *(part[row].tolist() for part in (ids[places], best, distances)), strict=True
                )
            ]
    return found


def replace_slots(examples: Sequence[Example], ids: Mapping[int, int | None]) -> list[Example]:
    """Returns the examples with a token in place of slot j for each j in `ids`. With None the slot
    is left out, and what follows comes one position earlier."""
    changed = []
    for example in examples:
        trunk, constant = example.trunk.copy(), example.constant
        for slot, token in ids.items():
            places = np.flatnonzero(trunk == -1 - slot)
            if token is None:
                constant -= int((places < constant).sum())
                trunk = np.delete(trunk, places)
            else:
                trunk[places] = token
        changed.append(example._replace(trunk=trunk, constant=constant))
    return changed


def prefix_attention(lm: LanguageModel, given: Given, examples: Sequence[Example]) -> np.ndarray:
    """Returns float64[P], the share of the attention that each position of a prefix gets: the mean
    over layers, heads and the positions that predict the right answers."""
    asked = [example._replace(tails=(example.tails[example.answer],)) for example in examples]
    shared, length = batching.shared_length(asked), given.sites[PREFIX["k"]].shape[1]
    front = bake(lm, asked[0].trunk[:shared], given)

    @jax.jit
    def attention(params, front, batch):
        variables = bind(lm.spec, params, front)
        _, kept = lm.module.apply(variables, *batch[:6], mutable=["attention"])
        layers, last = (kept["attention"][one]["attention"]["front"] for one in ("layers", "last"))
        rows = jnp.arange(len(batch.targets))[:, None]
        # The last layer has the reads alone.
        share = layers[:, rows, batch.reads[rows, batch.targets]].sum(0) + last[rows, batch.targets]
        return jnp.einsum("rmf,rm->f", share, batch.target_weights)[:length]

    total = np.zeros(length)
    shape = batching.evaluation_shape(asked, shared)
    for batch, _ in batching.evaluation_batches(asked, shared, shape):
        total += np.asarray(attention(lm.params, front, batching.behind_front(batch)), np.float64)
    return total / sum(len(example.tails[0]) for example in asked) / lm.spec.layers
