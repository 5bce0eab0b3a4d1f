"""The model against the plain one, which runs one sequence at a time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import plain_model
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import SPEC, SPECS, changed

from prompt_tuning_jax.data.batch import Batch
from prompt_tuning_jax.errors import UserError
from prompt_tuning_jax.models.cached import bake
from prompt_tuning_jax.models.decoder import REMAT
from prompt_tuning_jax.models.layers import times
from prompt_tuning_jax.models.sites import PREFIX, VISIBLE, Given, bind, sites

# One shape of rows for all tests, so that little is compiled.
ROWS, LENGTH, SLOTS = 2, 16, 3
FRONT = (1, -1, 77)
K, V = PREFIX.values()
Q = "lora/decoder/attention/q"


@pytest.fixture(scope="module")
def model():
    return plain_model.make()


@functools.partial(jax.jit, static_argnums=0)
def run(module, params, given, batch):
    """Hidden states [R, Q, D] where `batch` reads, and their logits float32[R, Q, V]."""
    variables = bind(module.spec, params, given)
    hidden = module.apply(variables, *batch[:6])
    return hidden, module.apply(variables, hidden, method="logits")


def one_row(ids, shared=0):
    """A batch of one sequence and a row of padding, where every position is read."""
    ids = np.array(ids, np.int32)
    size = len(ids) - shared
    tokens, segments = np.zeros((2, ROWS, LENGTH), np.int32)
    tokens[0, :size], segments[0, :size] = ids[shared:], 1
    reads = np.tile(np.arange(LENGTH), (ROWS, 1))
    return Batch(ids[:shared], tokens, reads + shared, segments, 0 * tokens, reads, *[tokens] * 4)


def hidden_of(lm, given, ids, shared=0):
    """Hidden states [n - S, D] of one sequence."""
    hidden = run(lm.module, lm.params, given, one_row(ids, shared))[0]
    return np.asarray(hidden[0, : len(ids) - shared])


def close(ours, plain, tolerance=1e-5):
    np.testing.assert_allclose(np.asarray(ours, np.float64), plain, rtol=0, atol=tolerance)


@st.composite
def layouts(draw):
    """For each row: (padding in front, trunk length, tail lengths) of each example in it."""
    rows = []
    for _ in range(ROWS):
        examples, left = [], LENGTH
        while left and draw(st.integers(0, 4)):
            padding = draw(st.integers(0, min(3, left - 1)))
            trunk = draw(st.integers(1, left - padding))
            left -= padding + trunk
            tails = []
            while left and draw(st.booleans()):
                tails.append(draw(st.integers(1, min(4, left))))
                left -= tails[-1]
            examples.append((padding, trunk, tails))
        rows.append(examples)
    return rows


class Filled:
    """Rows that are written part by part, and the hidden states that they should give."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        arrays = [np.zeros((ROWS, LENGTH), np.int32) for _ in range(4)]
        self.tokens, self.positions, self.segments, self.branches = arrays
        self.expected = np.zeros((ROWS, LENGTH, SPEC.width))

    def write(self, row, start, length, before, segment, branch):
        """Writes random tokens behind the sequence `before`; returns that sequence with them."""
        ids = self.rng.integers(-SLOTS, SPEC.vocabulary, length)
        here = (row, slice(start, start + length))
        self.tokens[here], self.segments[here], self.branches[here] = ids, segment, branch
        self.positions[here] = len(before) + np.arange(length)
        return [*before, *ids.tolist()]


@settings(max_examples=40)
@given(rows=layouts(), front=st.sampled_from([(), FRONT]), seed=st.integers(0, 2**32 - 1))
def test_packed_padded_branched_and_shared_is_one_sequence_at_a_time(model, rows, front, seed):
    lm, plain = model
    given = plain_model.random_given(0, SPEC, "prompt", "prefix", size=SLOTS)
    filled = Filled(seed)
    for row, examples in enumerate(rows):
        place = 0
        for segment, (padding, length, tails) in enumerate(examples, 1):
            place += padding
            trunk = filled.write(row, place, length, front, segment, 0)
            found = plain_model.states(plain, trunk, given)
            filled.expected[row, place : place + length] = found[len(front) :]
            place += length
            for branch, size in enumerate(tails, 1):
                whole = filled.write(row, place, size, trunk, segment, branch)
                found = plain_model.states(plain, whole, given)
                filled.expected[row, place : place + size] = found[len(trunk) :]
                place += size
    reads = np.tile(np.arange(LENGTH), (ROWS, 1))
    arrays = (filled.tokens, filled.positions, filled.segments, filled.branches, reads)
    batch = Batch(np.array(front, np.int32), *arrays, *[reads] * 4)
    ours = np.asarray(run(lm.module, lm.params, given, batch)[0])
    assert np.isfinite(ours).all()
    real = filled.segments > 0
    close(ours[real], filled.expected[real])


@pytest.mark.parametrize("name", SPECS)
def test_logits_of_every_position_are_those_of_one_sequence(name):
    spec, shared = SPECS[name], 3
    lm, plain = plain_model.make(spec)
    ids = np.random.default_rng(0).integers(0, spec.vocabulary, 12)
    given = plain_model.random_given(1, spec, "prefix")
    logits = run(lm.module, lm.params, given, one_row(ids, shared))[1]
    assert logits.dtype == jnp.float32
    wanted = plain_model.log_probabilities(plain, ids, given)[shared:]
    close(jax.nn.log_softmax(logits[0, : len(wanted)]), wanted)


def test_baked_shared_positions_are_the_unbaked_behind_a_prefix_too(model):
    lm, plain = model
    given = plain_model.random_given(4, SPEC, "prompt", "prefix")
    ids = [*FRONT, 120, 121, -3, 50]
    baked = bake(lm, np.array(FRONT, np.int32), given)
    assert baked.sites[K].shape[1] == 3 + len(FRONT)
    after = hidden_of(lm, baked, ids[len(FRONT) :])
    close(after, hidden_of(lm, given, ids, len(FRONT)), 2e-6)
    close(after, plain_model.states(plain, ids, given)[len(FRONT) :])
    assert bake(lm, np.zeros(0, np.int32), given) is given


@pytest.fixture(scope="module")
def by_remat():
    """For each policy: value and gradient, and the bytes that the backward pass works in."""
    spec = changed(layers=8, feedforward=200)
    given = plain_model.random_given(6, spec, "prompt", "prefix")
    batch = one_row([*FRONT, *range(50, 60)], len(FRONT))
    found = {}
    for remat in REMAT:
        lm, _ = plain_model.make(spec, remat=remat)

        def value(given, params, module=lm.module):
            variables = bind(spec, params, given)
            return jnp.sin(module.apply(variables, *batch[:6])).sum()

        compiled = jax.jit(jax.value_and_grad(value)).lower(given, lm.params).compile()
        made = jax.device_get(compiled(given, lm.params))
        found[remat] = made, compiled.memory_analysis().temp_size_in_bytes
    return found


@pytest.mark.parametrize("remat", ["named", "full"])
def test_remat_changes_no_value_and_no_gradient(by_remat, remat):
    wanted, ours = by_remat["none"][0], by_remat[remat][0]
    for one, other in zip(jax.tree.leaves(wanted), jax.tree.leaves(ours), strict=True):
        assert np.abs(one).max() > 1e-2
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_remat_decides_what_is_kept(by_remat):
    sizes = {remat: size for remat, (_, size) in by_remat.items()}
    assert sizes["full"] < sizes["named"] < sizes["none"], sizes


def test_a_half_precision_model_reads_a_float32_prompt(model):
    lm, plain = model
    half = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), lm.params)
    given = plain_model.random_given(7, SPEC, "prompt", "prefix")
    ids = [*FRONT, 90, 91, 92]
    hidden, logits = run(lm.module, half, given, one_row(ids, 3))
    assert (hidden.dtype, logits.dtype) == (jnp.bfloat16, jnp.float32)
    wanted = plain_model.log_probabilities(plain, ids, given)[3:]
    close(jax.nn.log_softmax(logits[0, :3]), wanted, 0.2)


def test_a_matmul_precision_reaches_every_product():
    lm, _ = plain_model.make(changed(tied_head=False), precision="highest")
    given = plain_model.random_given(8, SPEC, "prefix")
    made = jax.make_jaxpr(run.__wrapped__, static_argnums=0)(
        lm.module, lm.params, given, one_row([1, 50, 51, 52], 3)
    )
    products = str(made).count("dot_general[")
    assert products > 20  # two bodies of seven weights and some of attention, and the head
    assert str(made).count("precision=(Precision.HIGHEST, Precision.HIGHEST)") == products


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"promt/vectors": (3, 24)}, r"'promt/vectors' \(did you mean 'prompt/vectors'\?\)"),
        ({"prompt/vector": (3, 24)}, r"'prompt/vector' \(did you mean 'prompt/vectors'\?\)"),
        ({"prompt/vectors": (3, 25)}, r"'prompt/vectors' has shape \(3, 25\).* \[P, 24\]"),
        ({"prompt/vectors": (24,)}, r"shape \(24,\)"),
        ({f"{Q}/a": (3, 4, 24, 1)}, r"/a' has shape \(3, 4, 24, 1\)"),
        ({"prompt/vectors": (0, 24)}, r"shape \(0, 24\)"),
        ({K: (2, 5, 2, 10), V: (2, 5, 2, 10)}, r"/k' has shape \(2, 5, 2, 10\).*\[3, P, 2, 10\]"),
        ({K: (3, 5, 2, 10)}, f"'{K}' needs '{V}' beside it"),
        ({K: (3, 5, 2, 10), V: (3, 4, 2, 10)}, r"/v' has shape \(3, 4, 2, 10\).*\[3, 5, 2, 10\]"),
        ({"prefix/decoder/attention/key": (3, 2, 2, 10)}, f"reads {K}, {V}"),
        ({"lora/a": (3, 24, 4)}, r"does not read 'lora/a'.*lora/decoder/attention/q/a"),
        ({f"{Q}/a": (3, 4, 24)}, f"'{Q}/a' needs '{Q}/b' beside it"),
        ({f"{Q}/a": (3, 4, 24), f"{Q}/b": (3, 40, 5)}, r"/b' has shape \(3, 40, 5\).*\[3, 40, 4\]"),
        ({"scale/decoder/feedforward/down": (3, 24)}, r"shape \(3, 24\).*\[3, 36\]"),
    ],
)
def test_a_site_that_the_model_does_not_read_is_refused_by_name(shapes, message):
    arrays = {path: np.zeros(shape, np.float32) for path, shape in shapes.items()}
    with pytest.raises(UserError, match=message):
        bind(SPEC, {}, Given(arrays))


def test_weights_that_the_model_does_not_have_are_refused_by_name():
    for path, shape, message in (
        ("layers/attention/x/weight", (2, 40, 24), "does not read 'layers/attention/x/weight'"),
        ("layers/attention/q/weight", (3, 40, 24), r"has shape \(3, 40, 24\); .* \(2, 40, 24\)"),
    ):
        with pytest.raises(UserError, match=message):
            bind(SPEC, {}, Given(params={path: np.zeros(shape, np.float32)}))


def test_every_site_changes_the_answer(model):
    lm, plain = model
    ids = [*FRONT, 90, 91]
    given = plain_model.random_given(9, SPEC, "prompt", "prefix", "lora", "scale")
    assert given.sites.keys() == sites(SPEC).keys() - {VISIBLE}
    before = hidden_of(lm, given, ids, 3)
    close(before, plain_model.states(plain, ids, given)[3:], 5e-5)
    for path, leaf in given.sites.items():
        moved = Given({**given.sites, path: leaf + 0.5})
        assert np.abs(hidden_of(lm, moved, ids, 3) - before).max() > 1e-3, path


def test_a_hidden_position_of_a_prefix_is_as_if_it_were_not_there(model):
    lm, plain = model
    ids = [*FRONT[:1], 77, 90, 91]
    for size, shared in ((4, 0), (4, 2)):
        given = plain_model.random_given(11, SPEC, "prefix", size=size)
        hidden = np.array([1, 0, 1, 0], np.float32)
        found = hidden_of(lm, Given({**given.sites, VISIBLE: hidden}), ids, shared)
        # The positions of the text stay where they are.
        short = {path: leaf[:, hidden > 0] for path, leaf in given.sites.items()}
        wanted = plain_model.states(plain, ids, Given(short), begin=size)
        close(found, wanted[shared:])


@pytest.mark.parametrize("names", [(), ("prefix",), ("prompt",)])
@pytest.mark.parametrize("shared", [0, 3])
def test_a_slot_without_a_vector_is_never_read_as_another_token(model, names, shared):
    lm, _ = model
    given = plain_model.random_given(10, SPEC, *names)
    found = hidden_of(lm, given, [1, 40, -4, 41, 42, 43], shared)
    assert np.isnan(found[-1]).all()


@pytest.mark.parametrize(
    ("rows", "writes", "is_turned"),
    [(1, True, False), (2, True, True), (64, True, True), (65, True, False), (16, False, False)],
)
def test_while_a_text_is_written_few_rows_are_multiplied_from_the_right(rows, writes, is_turned):
    """XLA turns such a product around again, which takes longer, if nothing keeps it from that."""
    rng = np.random.default_rng(rows)
    x, weight = (rng.normal(size=(size, 24)).astype(np.float32) for size in (rows, 40))
    made = jax.jit(lambda *both: 2 * times(*both, "highest", writes=writes))
    compiled = made.lower(x, weight).compile()
    assert (f"f32[40,{rows}]" in compiled.as_text()) == is_turned
    np.testing.assert_allclose(compiled(x, weight), 2 * x @ weight.T, rtol=1e-5, atol=1e-5)
