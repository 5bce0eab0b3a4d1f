"""One update as pure functions (loss, gradient, update), and the same compiled over devices.

`train_step` is what runs everywhere: in a test, over a mesh and under `pmap`. Each passes its own
`total`: `gradients`, or their sum over devices. A fork changes these two functions. They know no
method and no model family.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import jax_utils
from jax.sharding import NamedSharding, PartitionSpec

from prompt_tuning_jax.data.batch import Batch
from prompt_tuning_jax.methods.base import Method
from prompt_tuning_jax.models.decoder import Decoder
from prompt_tuning_jax.models.sites import bind
from prompt_tuning_jax.sharding import AXES, MODEL, WHOLE, Layout, fetch, make_mesh, place


class Parts(NamedTuple):
    """The functions and plain numbers of an update, which stay the same."""

    module: Decoder
    method: Method
    optimizer: optax.GradientTransformation
    seed: int = 0
    microbatches: int = 1


class Frozen(NamedTuple):
    """What an update only reads."""

    params: Any  # the model's, without leaves that are trained
    fixed: Any  # what a method's `init` returned as that


class State(NamedTuple):
    """What an update changes: float32 trees, and int32[] counts. `refused` counts the updates that
    were skipped because they were not finite, `refused_in_a_row` those since the last good one."""

    step: Any
    trainable: Any
    optimizer_state: Any
    refused: Any
    refused_in_a_row: Any


class Sums(NamedTuple):
    """float32[] sums over targets, so that parts of a batch can be added: negative log-likelihood
    in nats, weights of the targets, targets that the model ranks first in its vocabulary."""

    loss: Any
    targets: Any
    correct: Any


def init_state(parts: Parts, trainable) -> State:
    """Returns the state before the first update."""
    # Three arrays and not one three times: the step reuses the memory of each.
    step, refused, in_a_row = (jnp.zeros((), jnp.int32) for _ in range(3))
    return State(step, trainable, parts.optimizer.init(trainable), refused, in_a_row)


def target_scores(module: Decoder, variables, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Returns the log-probability of every target, float32[R, M] nats, and whether it is the
    likeliest token."""
    hidden = module.apply(variables, *batch[:6])  # from `shared` to `reads`
    logits = module.apply(variables, hidden, method="logits")
    row = jnp.arange(logits.shape[0])[:, None]
    at_target = logits[row, batch.targets, batch.target_ids]
    scores = at_target - jax.nn.logsumexp(logits, axis=-1)[row, batch.targets]
    best = jnp.argmax(logits, axis=-1)[row, batch.targets] == batch.target_ids
    return scores, best


def loss_fn(trainable, frozen: Frozen, batch: Batch, rng, parts: Parts) -> tuple[jax.Array, Sums]:
    """Returns the summed negative log-likelihood of the targets, and all sums."""
    given = parts.method.adapt(trainable, frozen.fixed, frozen.params, rng, True)
    variables = bind(parts.module.spec, frozen.params, given)
    scores, best = target_scores(parts.module, variables, batch)
    weights = batch.target_weights
    loss = -(scores * weights).sum()
    return loss, Sums(loss, weights.sum(), (best * weights).sum())


def gradients(trainable, frozen: Frozen, batch: Batch, rng, parts: Parts):
    """Returns the gradient of the summed loss in `trainable`, and the sums; adds up microbatches.
    These may have unequal numbers of targets: their sums add up to those of one large batch, their
    means do not."""
    compute = jax.grad(loss_fn, has_aux=True)
    if parts.microbatches == 1:
        return compute(trainable, frozen, batch, rng, parts)

    def slices(rows):
        return rows.reshape(parts.microbatches, -1, *rows.shape[1:])

    def add(total, rows):
        part = compute(trainable, frozen, Batch(batch.shared, *rows), rng, parts)
        # XLA's compiler for TPUs fails if it moves the sum over devices out of this loop.
        part = jax.lax.optimization_barrier(part)
        return jax.tree.map(jnp.add, total, part), None

    zero = (jax.tree.map(jnp.zeros_like, trainable), Sums(*[jnp.zeros(())] * 3))
    total, _ = jax.lax.scan(add, zero, jax.tree.map(slices, batch[1:]))
    return total


def train_step(state: State, frozen: Frozen, batch: Batch, parts: Parts, total=gradients):
    """Updates `state.trainable`, and only reads what is frozen.

    Args:
      state: from `init_state` or an earlier step.
      batch: rows; `shared` is the same on all devices.
      total: called as `gradients`; gives the gradient and the sums over the rows of all devices.

    Returns:
      The next state, and a dict of float32[]: loss (mean nats a target), accuracy (in the whole
      vocabulary), targets, gradient_norm, refused_in_a_row. An update whose gradient or result is
      not finite is skipped.
    """
    rng = jax.random.fold_in(jax.random.key(parts.seed), state.step)  # the same on all devices
    gradient, sums = total(state.trainable, frozen, batch, rng, parts)
    count = jnp.maximum(sums.targets, 1.0)
    gradient = jax.tree.map(lambda leaf: leaf / count, gradient)
    norm = optax.tree.norm(gradient)
    trained, before = state.trainable, state.optimizer_state
    updates, after = parts.optimizer.update(gradient, before, trained)
    new = optax.apply_updates(trained, updates)
    finite = jnp.isfinite(norm) & jnp.isfinite(sums.loss) & jnp.isfinite(optax.tree.sum(new))
    trainable, optimizer_state = optax.tree.where(finite, (new, after), (trained, before))
    refused = jnp.where(finite, 0, 1).astype(jnp.int32)
    in_a_row = (state.refused_in_a_row + refused) * refused
    metrics = {
        "loss": sums.loss / count,
        "accuracy": sums.correct / count,
        "targets": sums.targets,
        "gradient_norm": norm,
        "refused_in_a_row": in_a_row.astype(jnp.float32),
    }
    all_refused = state.refused + refused
    return State(state.step + 1, trainable, optimizer_state, all_refused, in_a_row), metrics


class Compiled(NamedTuple):
    """A step over devices, and functions that move its arguments there and back."""

    step: Any  # `(state, frozen, batch) -> (state, metrics)`; reuses the old state's memory
    place: Callable  # copies a tree (state, frozen) to every device, divided matrices in parts
    place_batch: Callable  # spreads the rows of a numpy batch over the devices
    fetch: Callable  # copies a placed tree back to numpy


def compile_step(parts: Parts, parallel: str, devices=None, layout: Layout = WHOLE) -> Compiled:
    """Compiles `train_step` over devices: `parallel` is 'jit' (a mesh, on which the frozen weights
    have a layout) or 'pmap'."""
    devices = jax.devices() if devices is None else devices
    if parallel == "pmap":
        return _over_pmap(parts, devices)
    return _over_mesh(parts, devices, layout)


def row_specs() -> Batch:
    """Returns how a batch lies on a mesh: rows over both axes, the shared positions everywhere."""
    return Batch(PartitionSpec(), *[PartitionSpec(AXES)] * (len(Batch._fields) - 1))


def _over_mesh(parts, devices, layout):
    mesh, everywhere = make_mesh(devices, layout.shards), PartitionSpec()

    def total(trainable, frozen, batch, rng, parts):
        trained = layout.specs(trainable)

        def summed(trainable, frozen, batch, rng):
            gradient, sums = gradients(trainable, frozen, batch, rng, parts)
            leaves, tree = jax.tree.flatten(gradient)
            # That of a divided leaf is a sum over `model` already: the gradient of `gather`.
            inside = [MODEL in spec for spec in jax.tree.leaves(trained)]
            own = [leaf if there else None for leaf, there in zip(leaves, inside, strict=True)]
            others = [None if there else leaf for leaf, there in zip(leaves, inside, strict=True)]
            # XLA makes one collective of a tree, however many leaves it has.
            (others, sums), own = jax.lax.psum((others, sums), AXES), jax.lax.psum(own, AXES[0])
            both = [b if a is None else a for a, b in zip(own, others, strict=True)]
            return jax.tree.unflatten(tree, both), sums

        # check_vma=True would sum the shared keys' gradient over devices in every layer.
        specs = trained, layout.specs(frozen), row_specs(), everywhere
        over = jax.shard_map(
            summed, mesh=mesh, in_specs=specs, out_specs=(trained, everywhere), check_vma=False
        )
        return over(trainable, frozen, batch, rng)

    def step(state, frozen, batch):
        new, metrics = train_step(state, frozen, batch, parts, total)
        places = jax.tree.map(lambda spec: NamedSharding(mesh, spec), layout.specs(new))
        return jax.lax.with_sharding_constraint(new, places), metrics

    return Compiled(
        jax.jit(step, donate_argnums=0),
        lambda tree: place(tree, mesh, layout.specs(tree)),
        lambda batch: place(batch, mesh, row_specs()),
        functools.partial(jax.tree.map, fetch),
    )


def _over_pmap(parts, devices):
    def total(*given):
        return jax.lax.psum(gradients(*given), AXES[0])

    step = functools.partial(train_step, parts=parts, total=total)
    in_axes = (0, 0, Batch(None, *[0] * (len(Batch._fields) - 1)))
    mapped = jax.pmap(step, AXES[0], in_axes=in_axes, donate_argnums=0, devices=devices)

    def spread(batch):
        rows = (part.reshape(len(devices), -1, *part.shape[1:]) for part in batch[1:])
        return Batch(batch.shared, *rows)

    def fetch(tree):
        # The first device's copy without slicing the array, which costs milliseconds.
        return jax.tree.map(lambda leaf: np.array(leaf.addressable_data(0))[0], tree)

    return Compiled(mapped, lambda tree: jax_utils.replicate(tree, devices), spread, fetch)
