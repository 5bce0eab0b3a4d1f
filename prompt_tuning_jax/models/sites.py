"""What a method can hand to the model beside the frozen weights: the table, and its layout inside.

A method makes collections such as `{"prefix": {"k": [L, P, K, d], "v": [L, P, K, d]}}`. `bind`
checks each leaf against the table and refuses every other one: the model would ignore it silently.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from prompt_tuning_jax.errors import UserError, nearest
from prompt_tuning_jax.models.spec import Spec


def sites(spec: Spec) -> dict[tuple[str, str], tuple[int | None, ...]]:
    """Returns the shape of every (collection, leaf) that the model reads; None is any size."""
    stack = (spec.layers, None, spec.kv_heads, spec.head_size)
    return {
        ("prompt", "vectors"): (None, spec.width),
        ("prefix", "k"): stack,
        ("prefix", "v"): stack,
    }


def bind(spec: Spec, collections: Mapping[str, Mapping[str, jax.Array]]) -> dict[str, Any]:
    """Lays out a method's collections (`[L, ...]`) as the module reads them.

    Raises:
      UserError: the model does not read a leaf, or reads it in another shape.
    """
    table = sites(spec)
    for collection, leaves in collections.items():
        for leaf, array in leaves.items():
            _check_site(table, collection, leaf, array)
    bound: dict[str, Any] = {name: dict(leaves) for name, leaves in collections.items()}
    if "prefix" in bound:
        prefix = bound["prefix"]
        if len({array.shape for array in prefix.values()}) != 1 or len(prefix) != 2:
            raise UserError("a prefix needs 'k' and 'v' of the same shape [L, P, K, d].")
        bound["prefix"] = {
            "layers": {"attention": {name: part[:-1] for name, part in prefix.items()}},
            "last": {"attention": {name: part[-1] for name, part in prefix.items()}},
        }
    return bound


def _check_site(table, collection, leaf, array):
    path = f"{collection}/{leaf}"
    if (collection, leaf) not in table or isinstance(array, Mapping):
        names = [f"{first}/{second}" for first, second in table]
        raise UserError(
            f"the model does not read '{path}'{nearest(path, names)}; it reads {', '.join(names)}."
        )
    wanted, shape = table[collection, leaf], array.shape
    if len(shape) != len(wanted) or any(
        given == 0 or size not in (None, given) for size, given in zip(wanted, shape, strict=True)
    ):
        free = tuple("1 or more" if size is None else size for size in wanted)
        raise UserError(f"'{path}' has shape {tuple(shape)}; the model reads {free}.")


def unbind_baked(baked) -> dict[str, jax.Array]:
    """Returns the collection `baked` of a call as a prefix: keys and values `[L, F, K, d]`."""
    layers, last = baked["layers"]["attention"], baked["last"]["attention"]
    return {name: jnp.concatenate([layers[name], last[name][None]]) for name in ("k", "v")}


def prefix_length(collections) -> int:
    """Returns how many positions a prefix takes: a text's own begin after them.

    Takes collections as a method made them, as `bind` laid them out, or those of one layer.
    """
    leaves = jax.tree.leaves(collections.get("prefix", {}))
    return leaves[0].shape[-3] if leaves else 0
