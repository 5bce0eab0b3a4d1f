"""One update: loss, gradient, update, as pure functions; and the same compiled over devices.

`train_step` is what a fork changes and a test calls; it knows no method and no model family. Around
it, unchanged: `jit(shard_map)` over a mesh, or `pmap`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
from flax import jax_utils
from jax.sharding import NamedSharding, PartitionSpec

from prompt_tuning_jax.data.batch import Batch
from prompt_tuning_jax.methods.base import Method
from prompt_tuning_jax.models.decoder import Decoder
from prompt_tuning_jax.models.sites import bind

AXIS = "data"


class Parts(NamedTuple):
    """What an update is made of and does not change: functions and plain numbers."""

    module: Decoder
    method: Method
    optimizer: optax.GradientTransformation
    seed: int = 0
    microbatches: int = 1


class State(NamedTuple):
    """What an update changes: float32 trees, and int32[] counts. `refused` counts the updates left
    out because they were not finite, `refused_in_a_row` those since the last good one."""

    step: Any
    trainable: Any
    optimizer_state: Any
    refused: Any
    refused_in_a_row: Any


class Sums(NamedTuple):
    """float32[] sums over targets, so that parts of a batch can be added: negative log-likelihood
    in nats, weights of the targets, targets that the model ranks first of its vocabulary."""

    loss: Any
    targets: Any
    correct: Any


def init_state(parts: Parts, trainable) -> State:
    """The state before the first update."""
    # Three arrays, not one three times: the step takes the memory of each.
    step, refused, in_a_row = (jnp.zeros((), jnp.int32) for _ in range(3))
    return State(step, trainable, parts.optimizer.init(trainable), refused, in_a_row)


def target_scores(module: Decoder, variables, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Log-probability of every target, float32[R, M] nats, and whether no token is likelier."""
    hidden = module.apply(
        variables,
        batch.shared,
        batch.tokens,
        batch.positions,
        batch.segments,
        batch.branches,
        batch.reads,
    )
    logits = module.apply(variables, hidden, method="logits")
    row = jnp.arange(logits.shape[0])[:, None]
    at_target = logits[row, batch.targets, batch.target_ids]
    scores = at_target - jax.nn.logsumexp(logits, axis=-1)[row, batch.targets]
    best = jnp.argmax(logits, axis=-1)[row, batch.targets] == batch.target_ids
    return scores, best


def loss_fn(trainable, frozen, batch: Batch, rng, parts: Parts) -> tuple[jax.Array, Sums]:
    """Summed negative log-likelihood of the targets, differentiable in `trainable` alone."""
    collections = bind(parts.module.spec, parts.method.adapt(trainable, rng, True))
    scores, best = target_scores(parts.module, {"params": frozen, **collections}, batch)
    weights = batch.target_weights
    loss = -(scores * weights).sum()
    return loss, Sums(loss, weights.sum(), (best * weights).sum())


def gradients(trainable, frozen, batch: Batch, rng, parts: Parts):
    """Sums and gradient of the summed loss; microbatches of rows one after another, added up.

    Sums and not means: with unequal target counts only these add up to one large batch exactly.
    """
    compute = jax.grad(loss_fn, has_aux=True)
    if parts.microbatches == 1:
        return compute(trainable, frozen, batch, rng, parts)

    def slices(rows):
        return rows.reshape(parts.microbatches, -1, *rows.shape[1:])

    def add(total, rows):
        part = compute(trainable, frozen, Batch(batch.shared, *rows), rng, parts)
        return jax.tree.map(jnp.add, total, part), None

    zero = (jax.tree.map(jnp.zeros_like, trainable), Sums(*[jnp.zeros(())] * 3))
    total, _ = jax.lax.scan(add, zero, jax.tree.map(slices, batch[1:]))
    return total


def train_step(state: State, frozen, batch: Batch, parts: Parts, axis: str | None = None):
    """One update of `state.trainable`; the frozen tree is read and nothing else.

    Args:
      state: from `init_state` or an earlier step.
      frozen: the model's params.
      batch: rows of this device; `shared` is the same on all.
      parts: the rest.
      axis: name of the mapped axis to add up over, if any.

    Returns:
      The next state, and a dict of float32[]: loss (mean nats a target), accuracy (of the whole
      vocabulary), targets, gradient_norm, refused_in_a_row. An update whose gradient or result is
      not finite is left out.
    """
    rng = jax.random.fold_in(jax.random.key(parts.seed), state.step)
    total = gradients(state.trainable, frozen, batch, rng, parts)
    if axis is not None:
        # One vector, so one collective a step whatever the number of leaves.
        flat, unflatten = jax.flatten_util.ravel_pytree(total)
        total = unflatten(jax.lax.psum(flat, axis))
    gradient, sums = total
    count = jnp.maximum(sums.targets, 1.0)
    gradient = jax.tree.map(lambda leaf: leaf / count, gradient)
    norm = optax.tree.norm(gradient)
    updates, optimizer_state = parts.optimizer.update(
        gradient, state.optimizer_state, state.trainable
    )
    trainable = optax.apply_updates(state.trainable, updates)
    finite = jnp.isfinite(norm) & jnp.isfinite(sums.loss) & jnp.isfinite(optax.tree.sum(trainable))
    trainable, optimizer_state = jax.tree.map(
        lambda new, old: jnp.where(finite, new, old),
        (trainable, optimizer_state),
        (state.trainable, state.optimizer_state),
    )
    refused = jnp.where(finite, 0, 1).astype(jnp.int32)
    new = State(
        state.step + 1,
        trainable,
        optimizer_state,
        state.refused + refused,
        (state.refused_in_a_row + refused) * refused,
    )
    metrics = {
        "loss": sums.loss / count,
        "accuracy": sums.correct / count,
        "targets": sums.targets,
        "gradient_norm": norm,
        "refused_in_a_row": new.refused_in_a_row.astype(jnp.float32),
    }
    return new, metrics


class Compiled(NamedTuple):
    """A step over devices, and how its arguments get there and back.

    Attributes:
      step: `(state, frozen, batch) -> (state, metrics)`; takes the old state's memory.
      place: a tree to every device (state, frozen).
      place_batch: a numpy batch, its rows spread over the devices.
      fetch: a placed tree back as numpy.
    """

    step: Any
    place: Callable
    place_batch: Callable
    fetch: Callable


def compile_step(parts: Parts, parallel: str, devices=None) -> Compiled:
    """`train_step` over devices: `parallel` is 'jit' (shard_map over a mesh) or 'pmap'."""
    devices = jax.devices() if devices is None else devices
    step = functools.partial(train_step, parts=parts, axis=AXIS)
    return (_over_pmap if parallel == "pmap" else _over_mesh)(step, devices)


def row_specs() -> Batch:
    """How a batch lies on a mesh: rows spread over the axis, the shared positions everywhere."""
    spread = PartitionSpec(AXIS)
    return Batch(PartitionSpec(), *[spread] * (len(Batch._fields) - 1))


def make_mesh(devices):
    """A mesh of one axis, `data`."""
    kinds = (jax.sharding.AxisType.Auto,)
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=kinds, devices=devices)


def place_rows(mesh, batch: Batch) -> Batch:
    """A numpy batch on the mesh; every process has the whole batch and hands over its rows."""

    def put(array, spec):
        sharding = NamedSharding(mesh, spec)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return Batch(*map(put, batch, row_specs()))


def _over_mesh(step, devices):
    mesh = make_mesh(devices)
    everywhere = NamedSharding(mesh, PartitionSpec())

    def place(leaf):
        if everywhere.is_fully_addressable:
            return jax.device_put(leaf, everywhere)
        # `device_put` would first send the whole tree to every process, to compare.
        return jax.make_array_from_callback(np.shape(leaf), everywhere, lambda _: np.asarray(leaf))

    # check_vma=True would add the shared keys' gradient up over devices in every layer.
    mapped = jax.shard_map(
        step,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec(), row_specs()),
        out_specs=PartitionSpec(),
        check_vma=False,
    )
    return Compiled(
        jax.jit(mapped, donate_argnums=0),
        functools.partial(jax.tree.map, place),
        functools.partial(place_rows, mesh),
        # Copies: on a CPU numpy would look into memory that the next step takes over.
        functools.partial(jax.tree.map, np.array),
    )


def _over_pmap(step, devices):
    in_axes = (0, 0, Batch(None, *[0] * (len(Batch._fields) - 1)))
    mapped = jax.pmap(step, AXIS, in_axes=in_axes, donate_argnums=0, devices=devices)

    def spread(batch):
        rows = (part.reshape(len(devices), -1, *part.shape[1:]) for part in batch[1:])
        return Batch(batch.shared, *rows)

    def fetch(tree):
        # The first device's copy without slicing the array, which costs milliseconds.
        return jax.tree.map(lambda leaf: np.array(leaf.addressable_data(0))[0], tree)

    return Compiled(mapped, lambda tree: jax_utils.replicate(tree, devices), spread, fetch)
