"""Our side: the step that `train` runs, on the batches that `train` would make."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flops
import inputs
import jax
import jax.numpy as jnp
import numpy as np
import optax
import products
from flax import traverse_util

from prompt_tuning_jax.data.batch import Batch, pack_batch, plan_shapes, shared_length
from prompt_tuning_jax.data.example import Example
from prompt_tuning_jax.methods.base import Method
from prompt_tuning_jax.models.decoder import Decoder
from prompt_tuning_jax.models.files.weights import read_weights
from prompt_tuning_jax.models.sites import PROMPT, Given, prefix_length, without_leaves
from prompt_tuning_jax.score import virtual_tokens
from prompt_tuning_jax.step import Frozen, Parts, State, compile_step, gradients, init_state


class Model(NamedTuple):
    """A frozen model without its tokenizer: a step reads ids."""

    spec: Any
    module: Decoder
    params: Any


class Work(NamedTuple):
    """Operations of one update: those of our step's loss and gradient, the part that the backward
    pass repeats, and the fewest that the update needs."""

    flops: int
    recomputed: int
    least: int


class Training(NamedTuple):
    """A run of training before its first update.

    Attributes:
      model: frozen.
      parts: of the step.
      frozen: what it only reads.
      state: before the first update.
      batches: one for each update.
      cases: the same as examples.
    """

    model: Model
    parts: Parts
    frozen: Frozen
    state: State
    batches: list[Batch]
    cases: list[list[inputs.Case]]


def load(path: str, dtype: str, remat: str) -> Model:
    """Reads the model that both sides run."""
    found = read_weights(path, dtype)
    module = Decoder(found.spec, remat=remat)
    return Model(found.spec, module, jax.device_put(found.params))


def first(model: Model, method: str, num_virtual_tokens: int) -> Given:
    """Returns the first values of both sides: a soft prompt, the keys and values of a prefix, LoRA
    of rank 8 and IA3 as they begin, or the model's own weights."""
    if method == "fine_tuning":
        leaves = traverse_util.flatten_dict(model.params, sep="/")
        # Copies: the step takes the memory of what is trained.
        return Given(params={path: jnp.array(leaf, copy=True) for path, leaf in leaves.items()})
    if method in ("lora", "ia3"):
        return inputs.adapters(method, model.spec)
    if method == "prefix":
        return inputs.random_prefix(num_virtual_tokens, model.spec)
    ids = inputs.prompt_ids(num_virtual_tokens, model.spec.vocabulary)
    vectors = model.params["embed"]["embedding"][jnp.asarray(ids)].astype(jnp.float32)
    return Given({PROMPT: vectors})


def as_given() -> Method:
    """Returns a method that trains what the model is given as it is, but for the weights' dtype."""

    def adapt(trained, fixed, frozen, rng, train):
        # All leaves may be trained: then the dtype is their own.
        dtype = next(iter(jax.tree.leaves(frozen)), jnp.float32(0)).dtype
        return trained._replace(params={k: v.astype(dtype) for k, v in trained.params.items()})

    return Method(lambda *_: ({}, {}), adapt)


def prepare(
    model: Model,
    updates: Sequence[Sequence[inputs.Case]],
    given: Given,
    learning_rate: float,
) -> Training:
    """Packs the updates of a run that trains `given`."""
    slots = virtual_tokens(given)
    made = [example(each, slots) for update in updates for each in update]
    chosen = np.arange(len(made)).reshape(len(updates), -1)
    shared = shared_length(made)
    shapes = plan_shapes(made, chosen, shared)
    packed = [
        pack_batch([made[index] for index in row], shared, shapes, ranked=False) for row in chosen
    ]
    frozen = Frozen(without_leaves(model.params, given.params), {})
    parts = Parts(model.module, as_given(), optax.adamw(learning_rate, weight_decay=0.0))
    state = init_state(parts, given)
    cases = [list(update) for update in updates]
    return Training(model, parts, frozen, state, packed, cases)


def example(case: inputs.Case, num_virtual_tokens: int) -> Example:
    """Returns a case with its slots in front."""
    start = len(case.ids) - case.targets
    slots = [-1 - slot for slot in range(num_virtual_tokens)]
    trunk = np.array([*slots, *case.ids[:start]], np.int32)
    tail = np.array(case.ids[start:], np.int32)
    return Example(trunk, (tail,), 0, num_virtual_tokens + case.constant, 0)


def stepper(training: Training) -> Callable[[int], float]:
    """Returns a function that runs an update, by its number, on one device and gives its loss."""
    compiled = compile_step(training.parts, "jit", jax.devices()[:1])
    frozen = compiled.place(training.frozen)
    placed = [compiled.place_batch(batch) for batch in training.batches]
    state = compiled.place(training.state)

    def step(number: int) -> float:
        nonlocal state
        state, metrics = compiled.step(state, frozen, placed[number])
        jax.block_until_ready(state)
        return float(metrics["loss"])

    return step


def bare_products(training: Training) -> Callable[[int], Any]:
    """Returns a function that runs the bare products of an update's batch, padding included."""
    model, made = training.model, {}
    dtype = model.params["embed"]["embedding"].dtype
    for batch in training.batches:
        kind = _kind(batch)
        if kind not in made:
            positions = len(batch.shared) + batch.tokens.size
            reads, targets = batch.reads.size, batch.reads.size
            made[kind] = products.bare(model.params, model.spec, positions, reads, targets, dtype)
    return lambda number: made[_kind(training.batches[number])]()


def first_of_each_kind(training: Training) -> list[int]:
    """Returns the first update of each shape: it compiles that shape."""
    kinds = [_kind(batch) for batch in training.batches]
    return [kinds.index(kind) for kind in dict.fromkeys(kinds)]


def described(training: Training) -> dict[str, Any]:
    """Returns the shapes of the batches, and their share of padding."""
    batches = training.batches
    shapes = sorted({batch.tokens.shape for batch in batches})
    filled = sum(int((batch.segments > 0).sum()) for batch in batches)
    return {
        "updates": len(batches),
        "shared_positions": len(batches[0].shared),
        "rows": " ".join(f"{rows}x{length}" for rows, length in shapes),
        "padding": 1 - filled / sum(batch.tokens.size for batch in batches),
    }


def work(training: Training, numbers: Sequence[int]) -> Work:
    """Sums the operations of these updates."""
    counted: dict[tuple, tuple[int, int]] = {}
    totals = np.zeros(3, np.int64)
    for number in numbers:
        batch = training.batches[number]
        if _kind(batch) not in counted:
            counted[_kind(batch)] = _counted(training, batch)
        totals += (*counted[_kind(batch)], _least(training, number))
    return Work(*map(int, totals))


def _counted(training: Training, batch: Batch) -> tuple[int, int]:
    """Counts the operations of a step on `batch`, and those that remat repeats."""
    arguments = (
        training.state.trainable,
        training.frozen,
        batch,
        jax.random.key(0),
    )

    def count(remat):
        parts = training.parts._replace(module=training.model.module.clone(remat=remat))
        return flops.of_function(lambda *each: gradients(*each, parts), *arguments)

    whole = count(training.model.module.remat)
    return whole, whole - count("none")


def _least(training: Training, number: int) -> int:
    shared = len(training.batches[number].shared)
    slots = virtual_tokens(training.state.trainable)
    prefix = prefix_length(training.state.trainable)
    cases = training.cases[number]
    lengths = [slots + len(case.ids) - 1 - shared for case in cases]
    targets = [case.targets for case in cases]
    least = flops.least(training.model.spec, shared, lengths, targets, prefix)
    trained = training.state.trainable
    return least + flops.of_trained(training.model.spec, trained, shared, lengths, targets)


def _kind(batch: Batch) -> tuple[tuple[int, ...], ...]:
    return tuple(part.shape for part in batch)


def peak_device_bytes() -> int | None:
    """Returns the peak of the accelerator's memory in jax; None on a CPU."""
    found = jax.local_devices()[0].memory_stats()
    return found["peak_bytes_in_use"] if found else None
