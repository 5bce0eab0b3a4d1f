"""One update against the plain model, and equal updates over microbatches and devices."""

import functools
import os
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import plain_model
import pytest
from jax.flatten_util import ravel_pytree
from tiny_models import SPEC, changed

from prompt_tuning_jax import step as stepping
from prompt_tuning_jax.data.batch import Shape, empty_batch, pack_batch
from prompt_tuning_jax.methods.base import Method
from prompt_tuning_jax.models.sites import PROMPT, Given, bind
from prompt_tuning_jax.step import (
    Compiled,
    Frozen,
    Parts,
    compile_step,
    init_state,
    target_scores,
    train_step,
)

FRONT = (1, -1, -2, 40)
RATE = 0.05

TRACES = []


def counted(trainable, fixed, frozen, rng, train):
    """Hands over what is trained as it is, and counts how often the step is traced."""
    TRACES.append(train)
    return trainable


def noisy(trainable, fixed, frozen, rng, train):
    return jax.tree.map(lambda leaf: leaf + jax.random.normal(rng, leaf.shape), trainable)


MODEL, PLAIN = plain_model.make()
EXAMPLES = plain_model.random_examples(0, 11, FRONT, back=(-2,))
SHAPE = Shape(16, 12, 4, 4)
BATCH = pack_batch(EXAMPLES, len(FRONT), [SHAPE], ranked=False)
PARTS = Parts(MODEL.module, Method(lambda *_: None, counted), optax.sgd(RATE, 0.9))
ONE_LEAF = plain_model.random_given(1, SPEC, "prompt", size=2)
THREE_LEAVES = plain_model.random_given(1, SPEC, "prompt", "prefix", size=2)
FROZEN = Frozen(MODEL.params, {})

one_step = jax.jit(train_step, static_argnames="parts")


class Placed(NamedTuple):
    """A step over devices with what it needs, and the step as an executable."""

    made: Compiled
    frozen: Any
    run: Any

    def start(self):
        return self.made.place(init_state(PARTS, THREE_LEAVES))


@functools.cache
def over(parallel="jit", devices=8, microbatches=1) -> Placed:
    parts = PARTS._replace(microbatches=microbatches)
    made = compile_step(parts, parallel, jax.devices()[:devices])
    frozen, state = made.place(FROZEN), made.place(init_state(PARTS, THREE_LEAVES))
    lowered = made.step.lower(state, frozen, made.place_batch(BATCH))
    return Placed(made, frozen, lowered.compile())


def after(steps, *how, batch=BATCH):
    """The state and the metrics, as numpy, after some steps over devices."""
    placed = over(*how)
    state = placed.start()
    for _ in range(steps):
        state, metrics = placed.run(state, placed.frozen, placed.made.place_batch(batch))
    return placed.made.fetch(state), placed.made.fetch(metrics)


def assert_near(ours, wanted, tolerance):
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


def assert_same(ours, wanted):
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_batch_is_uneven():
    """The comparisons below need devices with different counts of targets, and one with none."""
    counts = BATCH.target_weights.reshape(8, -1).sum(axis=1)
    assert counts.min() == 0 and len(set(counts[:4])) > 1
    halves = BATCH.target_weights.reshape(2, -1).sum(axis=1)
    assert halves[0] != halves[1]


@pytest.mark.parametrize("rows", [1, 3])
def test_targets_score_as_in_one_sequence_at_a_time(rows):
    examples = plain_model.random_examples(3, 5, FRONT)
    given = ONE_LEAF
    scored = jax.jit(
        lambda params, batch: target_scores(MODEL.module, bind(SPEC, params, given), batch)
    )
    shape = Shape(rows, 72 // rows, 72 // rows, 48 // rows)
    for ranked in (False, True):
        batch = pack_batch(examples, len(FRONT), [shape], ranked=ranked)
        scores, best = map(np.asarray, scored(MODEL.params, batch))
        assert scores.dtype == np.float32 and scores.shape == best.shape == batch.targets.shape
        real = batch.target_weights > 0
        for number, example in enumerate(examples):
            for c in range(3) if ranked else [example.answer]:
                key = number * 3 + c if ranked else number
                mine = real & (batch.target_example == key)
                wanted = plain_model.target_scores(PLAIN, example, c, given)
                np.testing.assert_allclose(scores[mine], wanted, rtol=0, atol=1e-5)
                ids = [*example.trunk, *example.tails[c][:-1]]
                full = plain_model.log_probabilities(PLAIN, ids, given)
                likeliest = full[len(example.trunk) - 1 :].argmax(axis=1)
                np.testing.assert_array_equal(best[mine], likeliest == example.tails[c])


def test_the_likeliest_tokens_are_counted():
    """Random targets are never the likeliest, so the answers are what the model would say."""
    examples = []
    for number, example in enumerate(EXAMPLES[:4]):
        ids, said = list(example.trunk), []
        for _ in range(2):
            scores = plain_model.log_probabilities(PLAIN, ids, THREE_LEAVES)[-1]
            said.append(int(scores.argmax()))
            ids.append(said[-1])
        tail = np.array(said, np.int32) if number else np.array([said[0], 250], np.int32)
        examples.append(example._replace(tails=(tail,), answer=0))
    batch = pack_batch(examples, len(FRONT), [SHAPE], ranked=False)
    _, metrics = one_step(init_state(PARTS, THREE_LEAVES), FROZEN, batch, parts=PARTS)
    assert (metrics["targets"], metrics["accuracy"]) == (8, 7 / 8)


def test_a_step_follows_the_gradient_of_the_plain_model():
    tree = THREE_LEAVES
    state, metrics = one_step(init_state(PARTS, tree), FROZEN, BATCH, parts=PARTS)
    targets = sum(len(each.tails[each.answer]) for each in EXAMPLES)
    taken = jax.tree.map(lambda new, old: np.asarray(old - new) / RATE, state.trainable, tree)

    def with_prompt(vectors):
        return plain_model.loss(PLAIN, EXAMPLES, Given({**tree.sites, PROMPT: vectors}))

    slope = plain_model.slope(with_prompt, tree.sites[PROMPT]) / targets
    assert np.abs(slope).min(axis=1).max() > 1e-4
    np.testing.assert_allclose(taken.sites[PROMPT], slope, rtol=0, atol=1e-5)

    # A prefix has too many numbers to move each, so all leaves move in some directions.
    sizes = [leaf.size for leaf in jax.tree.leaves(tree)]
    ways = np.random.default_rng(0).standard_normal((5, sum(sizes)))

    def along(amounts):
        shifts = np.split(amounts @ ways, np.cumsum(sizes)[:-1])
        leaves, structure = jax.tree.flatten(tree)
        pairs = zip(leaves, shifts, strict=True)
        moved = [leaf + shift.reshape(leaf.shape) for leaf, shift in pairs]
        return plain_model.loss(PLAIN, EXAMPLES, jax.tree.unflatten(structure, moved))

    slope = plain_model.slope(along, np.zeros(5)) / targets
    np.testing.assert_allclose(ways @ ravel_pytree(taken)[0], slope, rtol=0, atol=1e-4)

    assert (state.step, state.refused, state.refused_in_a_row) == (1, 0, 0)
    wanted = {
        "loss": with_prompt(tree.sites[PROMPT]) / targets,
        "accuracy": 0.0,
        "targets": targets,
        "gradient_norm": np.linalg.norm(ravel_pytree(taken)[0]),
        "refused_in_a_row": 0.0,
    }
    assert metrics.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("how", [("jit", 8), ("pmap", 8), ("jit", 8, 2)])
def test_devices_change_nothing(how):
    state, metrics = after(3, *how)
    wanted, wanted_metrics = after(3, "jit", 1)
    assert state.step == wanted.step == 3
    assert_near(state, wanted, 1e-6)
    assert_near(metrics, wanted_metrics, 2e-6)


COLLECTIVE = re.compile(
    r" (all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute|collective-broadcast)"
    r"(-start)?\("
)


def assert_one_collective(executable):
    text = executable.as_text()
    assert [match[1] for match in COLLECTIVE.finditer(text)] == ["all-reduce"]
    # In the program itself and not in the body of a loop, where one line runs many times.
    assert COLLECTIVE.search(text[text.index("\nENTRY") :])


@pytest.mark.parametrize("how", [("jit", 8), ("pmap", 8), ("jit", 8, 2)])
def test_a_step_of_three_leaves_has_one_collective(how):
    assert_one_collective(over(*how).run)


@pytest.mark.parametrize("parallel", ["jit", "pmap"])
def test_a_shape_is_compiled_once_with_one_collective_for_one_leaf(parallel):
    made = compile_step(PARTS, parallel)
    frozen, state = made.place(FROZEN), made.place(init_state(PARTS, ONE_LEAF))
    lowered = made.step.lower(state, frozen, made.place_batch(BATCH))
    # With this option the program is, before code is made of it, the one that users run.
    option = "xla_cpu_use_fusion_emitters"
    options = {option: True} if option in os.environ["XLA_FLAGS"] else {}
    assert_one_collective(lowered.compile(compiler_options=options))
    others = pack_batch(EXAMPLES[:5], len(FRONT), [SHAPE], ranked=False)
    traces = []
    for batch in (BATCH, others, BATCH):
        state, _ = made.step(state, frozen, made.place_batch(batch))
        traces.append(len(TRACES))
    # In newer versions of jax, pmap places what it returns otherwise than its first input.
    assert traces[0] <= traces[1] <= traces[0] + (parallel == "pmap")
    assert traces[2] == traces[1]


@pytest.mark.parametrize("parallel", ["jit", "pmap"])
def test_who_edits_the_step_edits_what_devices_run(parallel, monkeypatch):
    def edited(*arguments, **more):
        state, metrics = train_step(*arguments, **more)
        return state, {"edited": metrics["loss"]}

    monkeypatch.setattr(stepping, "train_step", edited)
    made = compile_step(PARTS, parallel)
    placed = made.place(init_state(PARTS, ONE_LEAF)), made.place(FROZEN), made.place_batch(BATCH)
    assert [*jax.eval_shape(made.step, *placed)[1]] == ["edited"]


@pytest.mark.parametrize("how", [("jit", 8), ("pmap", 8)])
def test_steps_change_the_trainable_tree_and_nothing_else(how):
    made, frozen, run = over(*how)
    before = jax.tree.map(np.array, MODEL.params)
    state = over(*how).start()
    kept = made.fetch(state)
    copies = jax.tree.map(np.copy, kept)
    batch = made.place_batch(BATCH)
    for _ in range(3):
        given = state
        state, _ = run(state, frozen, batch)
        # The old state's memory is reused; the weights and the batch are only read.
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given.trainable))
    assert_same(made.fetch(frozen).params, before)
    assert_same(MODEL.params, before)
    assert_same(kept, copies)
    moved = jax.tree.map(np.subtract, made.fetch(state).trainable, THREE_LEAVES)
    assert min(np.abs(leaf).max() for leaf in jax.tree.leaves(moved)) > 1e-4


def test_the_optimizer_sees_the_trainable_tree_alone():
    state = init_state(PARTS._replace(optimizer=optax.adam(0.1)), THREE_LEAVES)
    shapes = [leaf.shape for leaf in jax.tree.leaves(THREE_LEAVES)]
    found = [leaf.shape for leaf in jax.tree.leaves(state.optimizer_state)]
    assert sorted(found) == sorted([(), *shapes, *shapes])


@pytest.mark.parametrize("how", [("jit", 8), ("pmap", 8)])
def test_a_bad_gradient_on_one_device_is_skipped_by_all_and_counted(how):
    tokens = BATCH.tokens.copy()
    tokens[0, 0] = -9  # a slot without a vector
    bad = BATCH._replace(tokens=tokens)
    made, frozen, run = over(*how)
    state = over(*how).start()
    counts = []
    for batch in (BATCH, bad, bad, BATCH):
        before = made.fetch(state)
        state, metrics = run(state, frozen, made.place_batch(batch))
        now, metrics = made.fetch(state), made.fetch(metrics)
        if batch is bad:
            assert_same(now[1:3], before[1:3])
        else:
            for new, old in zip(*map(jax.tree.leaves, (now[1:3], before[1:3])), strict=True):
                assert (new != old).any()
        assert np.isfinite(metrics["loss"]) == (batch is BATCH)
        assert metrics["refused_in_a_row"] == now.refused_in_a_row
        counts.append((int(now.step), int(now.refused), int(now.refused_in_a_row)))
    assert counts == [(1, 0, 0), (2, 1, 1), (3, 2, 2), (4, 2, 0)]


@pytest.mark.parametrize("weight", [np.inf, 1e38])
def test_a_gradient_that_is_too_large_is_skipped_too(weight):
    state = init_state(PARTS, THREE_LEAVES)
    bad = BATCH._replace(target_weights=np.where(BATCH.target_weights, np.float32(weight), 0))
    new, metrics = one_step(state, FROZEN, bad, parts=PARTS)
    assert not np.isfinite(metrics["loss"])
    assert_same(new[1:3], state[1:3])
    assert (new.step, new.refused, new.refused_in_a_row) == (1, 1, 1)


def test_the_same_state_and_batch_give_the_same_bits():
    assert_same(after(2, "jit", 8), after(2, "jit", 8))


def test_chance_is_a_function_of_seed_and_step():
    small, _ = plain_model.make(changed(layers=1))

    def loss(seed, step):
        parts = Parts(small.module, PARTS.method._replace(adapt=noisy), PARTS.optimizer, seed)
        state = init_state(parts, ONE_LEAF)._replace(step=jnp.int32(step))
        return float(one_step(state, Frozen(small.params, {}), BATCH, parts=parts)[1]["loss"])

    losses = {(seed, step): loss(seed, step) for seed in (0, 1) for step in (0, 1)}
    assert len(set(losses.values())) == 4
    assert loss(1, 1) == losses[1, 1]


def test_a_batch_of_padding_alone_changes_nothing():
    state, metrics = after(1, "jit", 8, batch=empty_batch(BATCH.shared, SHAPE))
    assert_same(state.trainable, THREE_LEAVES)
    assert (metrics["loss"], metrics["targets"], state.refused) == (0, 0, 0)
