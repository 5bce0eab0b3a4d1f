"""Attention to a shared front and within rows, and its written-out gradient, against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from prompt_tuning_jax.models import attention
from prompt_tuning_jax.models.attention import MASKED, attend


def inputs(seed, shared, rows, queries, length, before, heads=2, group=3, size=4):
    """Random arguments of `attend`; `before` keys of a prefix lie in front of the shared ones."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    query = normal(shared + rows * queries, heads, group, size)
    front = normal(before + shared, heads, size), normal(before + shared, heads, size)
    own = normal(rows, length, heads, size), normal(rows, length, heads, size)
    visible = rng.random((rows, queries, length)) < 0.6
    visible[..., 0] = True
    mask = np.where(visible, 0.0, MASKED).astype(np.float32)
    seen = rng.random((shared + rows * queries, before + shared)) < 0.6
    # Every query sees a key.
    hidden = np.where(seen, 0.0, MASKED).astype(np.float32) if before and not shared else None
    return query, front, own, mask, hidden, shared


def plain(query, front, own, mask, hidden, shared, cap=0.0):
    """One query of one head at a time, in float64."""
    queries = mask.shape[1]
    seen = np.zeros(query.shape)
    for place, head, member in np.ndindex(*query.shape[:3]):
        ahead = front if hidden is None else [part[hidden[place] == 0] for part in front]
        if place < shared:
            stop = len(front[0]) - shared + place + 1
            keys, values = (part[:stop, head] for part in ahead)
        else:
            row, index = divmod(place - shared, queries)
            chosen = mask[row, index] == 0
            keys, values = (
                np.concatenate([first[:, head], inside[row, chosen, head]])
                for first, inside in zip(ahead, own, strict=True)
            )
        scores = keys.astype(np.float64) @ query[place, head, member]
        scores = cap * np.tanh(scores / cap) if cap else scores
        weights = np.exp(scores - scores.max())
        seen[place, head, member] = weights / weights.sum() @ values
    return seen


sizes = st.tuples(st.integers(0, 5), st.integers(1, 3), st.integers(1, 4), st.integers(1, 5))


@settings(max_examples=12)
@given(sizes, st.integers(0, 3), st.integers(0, 99), st.sampled_from([0.0, 1.5]))
def test_it_is_the_plain_softmax(chosen, before, seed, cap):
    arguments = inputs(seed, *chosen, before)
    found = jax.jit(attend, static_argnums=(5, 6, 7))(*arguments, cap, None)
    np.testing.assert_allclose(found, plain(*arguments, cap), atol=2e-6)


@pytest.mark.parametrize("cap", [0.0, 1.5])
@pytest.mark.parametrize(("shared", "before"), [(3, 0), (3, 2), (0, 2), (0, 0)])
def test_the_gradient_is_the_slope(shared, before, cap):
    *arrays, mask, hidden, size = inputs(0, shared, 2, 3, 4, before)

    def of(query, front, own):
        return attend(query, front, own, mask, hidden, size, cap, None)

    given, near = jax.tree.map(jnp.asarray, arrays), {"atol": 2e-2, "rtol": 2e-2}
    check_grads(jax.jit(of), given, order=1, modes=["rev"], **near)


@pytest.mark.parametrize("shared", [0, 3])
def test_heads_side_by_side_equal_a_batch_of_heads(monkeypatch, shared):
    *given, size = inputs(1, shared, 2, 3, 4, 2)
    # jax 0.7 hands numpy's arrays to the gradient as something else.
    *arrays, mask, hidden = jax.tree.map(jnp.asarray, given)

    def of(query, front, own):
        seen = attend(query, front, own, mask, hidden, size, 0.0, None)
        return (seen**2).sum(), seen

    apart = jax.value_and_grad(of, argnums=(0, 1, 2), has_aux=True)(*arrays)
    choose = lambda *stacks, cpu, default: default(*stacks)  # noqa: E731
    monkeypatch.setattr(attention.jax.lax, "platform_dependent", choose)
    together = jax.value_and_grad(of, argnums=(0, 1, 2), has_aux=True)(*arrays)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), apart, together)


def test_a_cpu_has_a_product_for_each_head_and_what_is_lowered_for_a_tpu_one_for_all():
    *given, size = inputs(1, 3, 2, 3, 4, 2, heads=4)
    *arrays, mask, hidden = jax.tree.map(jnp.asarray, given)

    def of(query, front, own):
        return attend(query, front, own, mask, hidden, size, 0.0, None).sum()

    traced = jax.jit(jax.grad(of, argnums=(0, 1, 2))).trace(*arrays)
    texts = [traced.lower(lowering_platforms=(each,)).as_text() for each in ("cpu", "tpu")]
    counts = [text.count("stablehlo.dot_general") for text in texts]
    assert counts[0] == 4 * counts[1] > 0


def test_half_precision_keeps_its_dtype_and_sums_in_float32():
    *arrays, mask, hidden, size = inputs(2, 3, 2, 3, 4, 2)
    half = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), arrays)
    seen, pull = jax.vjp(lambda *given: attend(*given, mask, hidden, size, 0.0, None), *half)
    assert seen.dtype == jnp.bfloat16
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(pull(seen)))
    wanted = plain(
        *jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), half), mask, hidden, size
    )
    np.testing.assert_allclose(np.asarray(seen, np.float32), wanted, atol=2e-2)
