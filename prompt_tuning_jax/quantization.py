"""Frozen matrices in int8: `{q, scale}`, a scale for each output row, of the model's dtype.

A matrix becomes floats where it is used. In scanned layers it does so again in the backward pass,
unless `model.remat` is 'none'. XLA may keep the floats of the last layer and of the embeddings.
"""

from collections.abc import Container, Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from prompt_tuning_jax.sharding import gather

HIGHEST = 127
AT_ONCE = 4096  # rows that are quantised together


def quantize(params: dict[str, Any], matrices: Container[str]) -> dict[str, Any]:
    """Returns a frozen tree of numpy arrays with the leaves at some paths in int8. Those of
    `params` are taken out of it one by one, so that both trees are never there whole."""
    flat = traverse_util.flatten_dict(params, sep="/")
    params.clear()
    found = {}
    for path in list(flat):
        leaf = flat.pop(path)
        if path not in matrices:
            found[path] = leaf
            continue
        # A model of one layer has an empty stack: it gives one part without rows.
        rows, parts = leaf.reshape(-1, leaf.shape[-1]), range(0, leaf[..., 0].size or 1, AT_ONCE)
        pairs = [_quantize(rows[begin : begin + AT_ONCE]) for begin in parts]
        numbers, scales = (np.concatenate(part) for part in zip(*pairs, strict=True))
        found[f"{path}/q"] = numbers.reshape(leaf.shape)
        found[f"{path}/scale"] = scales.reshape(leaf.shape[:-1])
    return traverse_util.unflatten_dict(found, sep="/")


def _quantize(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns int8[n, in] and the scales [n] of rows."""
    exact = rows.astype(np.float32)
    # Rounded as it is stored, before the numbers are: in float16 a small one is 0.
    scales = (np.abs(exact).max(axis=1) / HIGHEST).astype(rows.dtype)
    scales = np.where(scales > 0, scales, scales.dtype.type(1))
    numbers = np.rint(exact / scales.astype(np.float32)[:, None])
    return numbers.clip(-HIGHEST, HIGHEST).astype(np.int8), scales


def is_quantized(leaf: Any) -> bool:
    """Tells whether a part of a tree is a matrix in int8: its numbers `q` and their `scale`."""
    return isinstance(leaf, Mapping) and getattr(leaf.get("q"), "dtype", None) == np.int8


def full_matrix(leaf: Any, shape: tuple[int, ...]) -> jax.Array:
    """Returns a matrix of a shape, of which `leaf` may be the part of one device, or int8."""
    if not isinstance(leaf, Mapping):
        return gather(leaf, shape)
    return gather(leaf["q"], shape).astype(leaf["scale"].dtype) * leaf["scale"][..., None]
