"""The rotary embedding: attention knows a position by how far its queries and keys are turned."""

import jax
import jax.numpy as jnp
import numpy as np

from prompt_tuning_jax.models.spec import Spec


def frequencies(spec: Spec) -> np.ndarray:
    """Returns by how many radians each pair of a head turns from one position to the next.

    float32[d/2], rounded where transformers rounds: another last bit of a frequency is an angle
    that is off by 1e-4 at position 1,500.
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


def rotary_tables(spec: Spec, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns cosine and sine, float32[N, 1, d/2], of the angles at int32[N] positions."""
    angles = positions.astype(jnp.float32)[:, None, None] * frequencies(spec)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, cosine: jax.Array, sine: jax.Array) -> jax.Array:
    """Turns `[N, heads, d]` by its positions; a pair is an entry of each half of d."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = (first * cosine - second * sine, second * cosine + first * sine)
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)
