"""The bare matrix products of a training step, forward and for the gradient of the input."""

import jax
import jax.numpy as jnp


def bare(params, spec, positions: int, reads: int, targets: int, dtype):
    """Returns a function of no arguments that runs only a step's products and waits for them.

    It is a scan over the weights `[L-1, …]` of the step on `positions` rows, then the last layer as
    in the step (keys and values everywhere, the rest at `reads`), and the head at `targets`. Only
    additions stand between products. Their gradients need nothing from the forward pass, so that
    nothing is stored or computed again.
    """
    keys = jax.random.split(jax.random.key(0))
    x = jax.random.normal(keys[0], (positions, spec.width), dtype)
    cotangent = jax.random.normal(keys[1], (targets, spec.vocabulary), jnp.float32)

    @jax.jit
    def run(params, x, cotangent):
        logits, pull = jax.vjp(lambda x: forward(params, spec, x, reads, targets), x)
        return logits, pull(cotangent)

    return lambda: jax.block_until_ready(run(params, x, cotangent))


def forward(params, spec, x, reads: int, targets: int):
    """Sends `[N, D]` through every matrix of the model, to float32[targets, V]."""

    def layer(x, weights):
        return _layer(x, x, weights, spec), None

    x, _ = jax.lax.scan(layer, x, params["layers"])
    x = _layer(x, x[-reads:], params["last"], spec)
    x = x[jnp.arange(targets) % reads]
    head = params["embed"]["embedding"] if spec.tied_head else params["head"]["weight"]
    return _times(x, head, jnp.float32)


def _layer(x, read, weights, spec):
    """Runs the products of one layer: keys and values of `x`, all others of `read`."""

    def times(x, part, name):
        return _times(x, weights[part][name]["weight"])

    seen = times(x, "attention", "k") + times(x, "attention", "v")
    # XLA drops a product that does not reach the result, so rows of keys and values that are not
    # read are added to the first one that is.
    ahead = x.shape[0] - read.shape[0]
    seen = seen[ahead:].at[0].add(seen[:ahead].sum(axis=0))
    queries = times(read, "attention", "q")
    mixed = queries + jnp.tile(seen, (1, spec.heads // spec.kv_heads))
    read = read + times(mixed, "attention", "o")
    wide = times(read, "feedforward", "up")
    if spec.gated:
        wide = wide + times(read, "feedforward", "gate")
    return read + times(wide, "feedforward", "down")


def _times(x, weight, dtype=None):
    """Multiplies `[N, in]` by `[out, in]`."""
    return jax.lax.dot_general(x, weight, (((1,), (1,)), ((), ())), preferred_element_type=dtype)
