"""What every method has to keep to: a row each in `ROWS`."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import plain_model
import pytest
import tiny_methods
from test_step import assert_near, assert_same
from tiny_methods import TASK
from tiny_models import changed

from prompt_tuning_jax import score as scoring
from prompt_tuning_jax.data.batch import Shape, pack_batch
from prompt_tuning_jax.methods import METHODS
from prompt_tuning_jax.methods.base import Method
from prompt_tuning_jax.models.sites import Given, check_given, virtual_tokens, without_leaves
from prompt_tuning_jax.sharding import shard
from prompt_tuning_jax.step import Frozen, Parts, compile_step, init_state

# A method and what it is tried with; a method that has a network only on request has two rows.
ROWS: dict[str, dict[str, Any]] = {
    "soft_prompt": {"num_virtual_tokens": 3},
    "prompt_encoder": {"num_virtual_tokens": 3, "hidden_size": 8},
    "low rank": {
        "name": "prompt_encoder",
        "num_virtual_tokens": 3,
        "kind": "low_rank",
        "hidden_size": 4,
    },
    "superposition": {
        "name": "prompt_encoder",
        "num_virtual_tokens": 3,
        "kind": "superposition",
        "hidden_size": 5,
    },
    "prefix": {"num_virtual_tokens": 3},
    "prefix, network": {"name": "prefix", "num_virtual_tokens": 3, "hidden_size": 8},
    "lora": {"rank": 2},
    "ia3": {},
    "fine_tuning": {},
}
# As small as still has a scan and grouped heads: compilation is all that takes time here.
SPEC = changed(layers=2, heads=2, kv_heads=1)
LM, PLAIN = plain_model.make(SPEC)
SHAPE = Shape(16, 12, 4, 4)
EVERY_ROW = pytest.mark.parametrize("row", ROWS)


def settings(row) -> dict[str, Any]:
    """The row's section `method` of a config."""
    return {"name": row, **ROWS[row]}


class Tried(NamedTuple):
    """A row ready for steps: its parts, first tree and examples; `traces` grows with each trace."""

    parts: Parts
    trainable: Any
    frozen: Frozen
    examples: list
    shared: int
    traces: list

    def batch(self, examples):
        return pack_batch(examples, self.shared, [SHAPE], ranked=False)

    def given(self, trainable) -> Given:
        """What a method gives the model, as numpy."""
        return jax.device_get(self.adapt(trainable, jax.random.key(0), False))

    def adapt(self, trainable, key, train) -> Given:
        return self.parts.method.adapt(trainable, self.frozen.fixed, LM.params, key, train)


@functools.cache
def tried(row) -> Tried:
    made, traces = tiny_methods.make(**settings(row)), []

    def adapt(trainable, fixed, frozen, rng, train):
        traces.append(train)
        return made.adapt(trainable, fixed, frozen, rng, train)

    # As numpy: a step takes the memory of what it is given.
    trainable, fixed = jax.device_get(made.init(jax.random.key(0), LM, TASK))
    parts = Parts(LM.module, Method(made.init, adapt), optax.adam(0.02))
    given = made.adapt(trainable, fixed, LM.params, jax.random.key(0), False)
    frozen = Frozen(without_leaves(LM.params, given.params), fixed)
    front = (1, *(-1 - slot for slot in range(virtual_tokens(given))), 40)
    examples = plain_model.random_examples(0, 11, front)
    return Tried(parts, trainable, frozen, examples, len(front), traces)


@functools.cache
def after(row, parallel, devices, microbatches=1, shards=1, more=(), optimizer=None):
    """The state, all losses, and the frozen weights, as numpy, of three steps over devices."""
    given = tried(row)
    optimizer = optimizer or given.parts.optimizer
    parts = given.parts._replace(microbatches=microbatches, optimizer=optimizer)
    layout = tiny_methods.layout(SPEC, shards, more)
    compiled = compile_step(parts, parallel, jax.devices()[:devices], layout)
    frozen = compiled.place(given.frozen._replace(params=shard(given.frozen.params, layout)))
    state = compiled.place(init_state(parts, given.trainable))
    batches = [compiled.place_batch(given.batch(part)) for part in cut(given.examples)]
    run = compiled.step.lower(state, frozen, batches[0]).compile()
    losses = []
    for batch in batches:
        state, metrics = run(state, frozen, batch)
        losses.append(float(compiled.fetch(metrics)["loss"]))
    return compiled.fetch(state), losses, compiled.fetch(frozen)


def cut(examples):
    return examples, examples[:5], examples


def test_every_method_of_the_table_has_a_row():
    assert {settings(row)["name"] for row in ROWS} == set(METHODS)


@EVERY_ROW
def test_its_two_functions(row):
    given, key = tried(row), jax.random.key(0)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(given.trainable))
    again = given.parts.method.init(key, LM, TASK)
    assert_same(again, (given.trainable, given.frozen.fixed))
    given.traces.clear()
    adapt = jax.jit(lambda tree, key: given.adapt(tree, key, True))
    first = adapt(given.trainable, key)
    check_given(SPEC, first)
    moved = adapt(jax.tree.map(lambda leaf: leaf + 1, given.trainable), jax.random.key(1))
    assert given.traces == [True], "compiled twice"
    for new, old in zip(*map(jax.tree.leaves, (moved, first)), strict=True):
        assert (new != old).any()


@EVERY_ROW
def test_only_what_is_trained_moves_and_it_changes_the_scores(row):
    given = tried(row)
    state, losses, frozen = after(row, "jit", 1)
    assert_same(frozen, given.frozen)
    for new, old in zip(*map(jax.tree.leaves, (state.trainable, given.trainable)), strict=True):
        assert np.abs(new - old).max() > 1e-3
    assert state.refused == 0 and losses[2] < losses[0]
    before, now = (
        scoring.score(LM, given.examples, given.given(tree), jax.devices()[:1])
        for tree in (given.trainable, state.trainable)
    )
    wanted = plain_model.answer_scores(PLAIN, given.examples, given.given(state.trainable))
    np.testing.assert_allclose(now, wanted, rtol=0, atol=2e-5)
    assert np.abs(now - before).max() > 1e-2


@EVERY_ROW
def test_devices_microbatches_and_divided_weights_change_nothing(row):
    # Adam divides by the gradient's own size: where that is rounding alone, so is the step.
    plain = optax.sgd(0.1)
    wanted, losses, _ = after(row, "jit", 1, optimizer=plain)
    for how in (("jit", 8), ("jit", 8, 1, 2), ("jit", 8, 2, 4), ("jit", 8, 1, 8), ("pmap", 8)):
        state, found, _ = after(row, *how, optimizer=plain)
        np.testing.assert_allclose(found, losses, rtol=1e-6)
        assert_near(state.trainable, wanted.trainable, 1e-6)


@EVERY_ROW
def test_a_half_precision_model_is_compiled_once_and_trains_in_float32(row):
    given = tried(row)
    compiled = compile_step(given.parts, "jit", jax.devices()[:1])
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), given.frozen)
    frozen = compiled.place(half)
    state, losses, traces = compiled.place(init_state(given.parts, given.trainable)), [], []
    for part in cut(given.examples):
        state, metrics = compiled.step(state, frozen, compiled.place_batch(given.batch(part)))
        losses.append(float(metrics["loss"]))
        traces.append(len(given.traces))
    assert len(set(traces)) == 1
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(state.trainable))
    assert state.refused == 0
    np.testing.assert_allclose(losses, after(row, "jit", 1)[1], rtol=0.03)
