"""Our attention against jax.nn.dot_product_attention, forward and backward, on the same arrays.

python benchmarks/attention_time.py --updates 30

JAX's attention has no keys that all rows share: they are repeated for each row.
"""

import argparse
import statistics
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from prompt_tuning_jax.models.attention import MASKED, attend

# Shared positions, keys of a prefix, rows, positions of a row.
SHAPES = ((35, 0, 4, 47), (3, 32, 4, 47), (103, 0, 4, 64), (103, 0, 16, 256), (3, 100, 16, 256))
HEADS, GROUP, SIZE = 3, 3, 64  # SmolLM2-135M's


def arrays(shared, before, rows, length, dtype):
    """Returns random queries, a front, the rows' own keys and values, and a causal mask."""

    def normal(seed, *shape):
        return jax.random.normal(jax.random.key(seed), shape).astype(dtype)

    query = normal(0, shared + rows * length, HEADS, GROUP, SIZE) * SIZE**-0.5
    front = tuple(normal(seed, before + shared, HEADS, SIZE) for seed in (1, 2))
    own = tuple(normal(seed, rows, length, HEADS, SIZE) for seed in (3, 4))
    mask = jnp.where(jnp.tri(length, dtype=bool), 0.0, MASKED)
    return (query, front, own), jnp.broadcast_to(mask, (rows, length, length))


def ours(shared, mask):
    """Returns `attend` as a function of the arrays alone."""
    return lambda query, front, own: attend(query, front, own, mask, None, shared, 0.0, None)


def of_jax(shared, mask, implementation=None):
    """Returns the same by jax.nn.dot_product_attention."""

    def attention(query, keys, values, bias):
        rows, length = len(keys), query.shape[0] // len(keys)
        query = query.reshape(rows, length, HEADS * GROUP, SIZE)
        seen = jax.nn.dot_product_attention(
            query, keys, values, bias.astype(query.dtype), scale=1.0, implementation=implementation
        )
        return seen.reshape(rows * length, HEADS, GROUP, SIZE)

    def function(query, front, own):
        rows, size = len(mask), len(front[0])
        repeated = (jnp.broadcast_to(part, (rows, *part.shape)) for part in front)
        both = (jnp.concatenate(pair, 1) for pair in zip(repeated, own, strict=True))
        bias = jnp.pad(mask, ((0, 0), (0, 0), (size, 0)))[:, None]
        seen = attention(query[shared:], *both, bias)
        if not shared:
            return seen
        causal = jnp.where(jnp.tri(shared, size, size - shared, dtype=bool), 0.0, MASKED)
        first = attention(query[:shared], front[0][None], front[1][None], causal[None, None])
        return jnp.concatenate([first, seen])

    return function


def compare(shape, updates, dtype=jnp.float32, implementation=None):
    """Returns both sides' seconds, timed in turn, and the largest difference of the gradients as a
    part of the largest gradient."""
    given, mask = arrays(*shape, dtype)

    def gradient(function):
        value = lambda *given: jnp.sin(function(*given).astype(jnp.float32)).sum()  # noqa: E731
        return jax.jit(jax.grad(value, argnums=(0, 1, 2)))

    sides = gradient(ours(shape[0], mask)), gradient(of_jax(shape[0], mask, implementation))
    found, wanted = (jax.tree.leaves(side(*given)) for side in sides)
    apart = max(float(jnp.abs(a - b).max()) for a, b in zip(found, wanted, strict=True))
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(updates):
        for side, times in zip(sides, seconds, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(side(*given))
            times.append(time.perf_counter() - start)
    largest = max(float(jnp.abs(leaf).max()) for leaf in wanted)
    return *map(statistics.median, seconds), apart / largest


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--updates", type=int, default=30, help="times that each side runs")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--implementation", choices=["xla", "cudnn"], help="jax's choice if absent")
    return parser.parse_args(arguments)


def main() -> None:
    """Prints a line for each shape."""
    options = parse()
    for shape in SHAPES:
        mine, other, apart = compare(
            shape, options.updates, jnp.dtype(options.dtype), options.implementation
        )
        names = "{} shared, {} of a prefix, {} rows of {}".format(*shape)
        print(
            f"{names}: ours {mine * 1e3:.2f} ms, jax.nn {other * 1e3:.2f} ms,"
            f" {other / mine:.2f} times; gradients differ by {apart:.0e}"
        )


if __name__ == "__main__":
    main()
