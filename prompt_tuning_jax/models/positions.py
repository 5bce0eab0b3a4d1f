"""The rotary embedding: attention knows a position by how far its queries and keys are turned."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from prompt_tuning_jax.models.spec import Rope, Spec


def frequencies(rope: Rope) -> tuple[np.ndarray, float]:
    """Returns by how many radians each pair of a head turns from one position to the next,
    float32[r/2], and what cosine and sine are multiplied by. Rounded where transformers rounds:
    another last bit of a frequency is an angle that is off by 1e-4 at position 1,500."""
    exponents = np.arange(0, rope.size, 2, dtype=np.float32) / np.float32(rope.size)
    powers = (rope.theta ** exponents.astype(np.float64)).astype(np.float32)
    plain = np.float32(1) / powers
    if rope.kind == "linear":
        return plain / np.float32(rope.numbers[0]), 1.0
    if rope.kind == "llama3":
        # Llama 3.1: long wavelengths are stretched, short ones kept, with a ramp between the two.
        factor, low, high, original = rope.numbers
        turns = original * plain / np.float32(2 * np.pi)
        kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
        return plain * (kept + (1.0 - kept) / factor), 1.0
    if rope.kind == "yarn":
        # Peng et al. 2023: a ramp over dimensions of `slow` to `fast` turns in the original length.
        factor, fast, slow, original, size = rope.numbers
        lengths = (math.log(original / (turns * 2 * math.pi)) for turns in (fast, slow))
        first, last = (rope.size * length / (2 * math.log(rope.theta)) for length in lengths)
        first, last = max(math.floor(first), 0), min(math.ceil(last), rope.size - 1)
        ramp = np.arange(rope.size // 2, dtype=np.float32) - np.float32(first)
        kept = 1 - np.clip(ramp / np.float32((last - first) or 0.001), 0, 1)
        return np.float32(1) / (np.float32(factor) * powers) * (1 - kept) + plain * kept, size
    if rope.kind == "longrope":
        # transformers takes other factors for batches beyond the original positions: a text would
        # depend on what stands beside it.
        factors, size = rope.numbers
        return np.float32(1) / (np.array(factors, np.float32) * powers), size
    return plain, 1.0


def rotary_tables(spec: Spec, positions: jax.Array) -> tuple[jax.Array, jax.Array] | None:
    """Returns cosine and sine, float32[N, 1, r/2], of the angles at int32[N] positions, or None if
    nothing turns. If layers differ, there is a table for each rope, and one that turns nothing."""
    if not spec.ropes:
        return None
    tables = []
    for rope in spec.ropes:
        turns, size = frequencies(rope)
        angles = positions.astype(jnp.float32)[:, None, None] * turns
        tables.append((size * jnp.cos(angles), size * jnp.sin(angles)))
    if not spec.layer_ropes:
        return tables[0]
    tables.append((jnp.ones_like(tables[0][0]), jnp.zeros_like(tables[0][1])))
    return jnp.stack([pair[0] for pair in tables]), jnp.stack([pair[1] for pair in tables])


def rotate(x: jax.Array, cosine: jax.Array, sine: jax.Array) -> jax.Array:
    """Turns the first r of `[N, heads, d]` by its positions; a pair is an entry of each half."""
    size = 2 * cosine.shape[-1]
    first, second = jnp.split(x[..., :size].astype(jnp.float32), 2, axis=-1)
    turned = [first * cosine - second * sine, second * cosine + first * sine]
    if size < x.shape[-1]:
        turned.append(x[..., size:].astype(jnp.float32))
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)
