"""What int8 does to a model: bytes, and the change of its logits on the bodies of BBC articles.

python benchmarks/int8_change.py --model smollm2-135m-instruct
"""

import argparse
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from prompt_tuning_jax import load
from prompt_tuning_jax.data.bbc_news import read_bodies
from prompt_tuning_jax.models.sites import NOTHING, bind

TEXTS, TOKENS = 8, 96


def logits(lm, ids):
    """Returns float32[T, V] for int[T] ids."""
    row, places = jnp.array([ids], jnp.int32), jnp.arange(len(ids))[None]
    variables, ones = bind(lm.spec, lm.params, NOTHING), jnp.ones_like(row)
    shared = jnp.zeros((0,), jnp.int32)
    hidden = lm.module.apply(variables, shared, row, places, ones, 0 * ones, places)
    return np.asarray(lm.module.apply(variables, hidden, method="logits"))[0]


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m-instruct", help="as config.model.path")
    return parser.parse_args(arguments)


def main() -> None:
    """Prints the comparison."""
    model = parse().model
    exact, coarse = load(model), load(model, quantize="int8")
    size, smaller = (
        sum(leaf.nbytes for leaf in jax.tree.leaves(lm.params)) for lm in (exact, coarse)
    )
    texts = (exact.tokenizer.encode(text)[0][:TOKENS] for text in read_bodies(TEXTS))
    pairs = [[logits(lm, ids) for lm in (exact, coarse)] for ids in texts]
    before, after = (np.concatenate(part) for part in zip(*pairs, strict=True))
    change = np.abs(before - after).mean()
    spans = (before.max(-1) - before.min(-1)).mean(), before.std(-1).mean()
    same = (before.argmax(-1) == after.argmax(-1)).mean()
    print(f"bytes: {smaller / size:.3f} of {size / 1e6:.0f} MB")
    of_range, of_deviation = (change / span for span in spans)
    print(f"mean absolute change of a logit: {change:.3f}")
    print(f"  of their range {of_range:.2%}, of their standard deviation {of_deviation:.1%}")
    print(f"the same likeliest token: {same:.1%} of {len(before)} positions")


if __name__ == "__main__":
    main()
