"""Our decoder on the inputs of `make_fixtures.Reference`, compared with the numbers there."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from prompt_tuning_jax.models.decoder import Decoder
from prompt_tuning_jax.models.files.weights import read_weights
from prompt_tuning_jax.models.sites import NOTHING, Given, bind

TOLERANCE = 1e-4


def read_model(path):
    """Reads a model in float32: module and params."""
    model = read_weights(str(path), "float32")
    return Decoder(model.spec, precision="highest"), model.params


def compute_logits(model, tokens, positions, segments, shared=(), given=NOTHING, reads=None):
    """float32[R, T, V] at every position of every row, or at those that are read."""
    shared = np.array(shared, np.int32)
    return _run(*model, shared, tokens, positions, segments, given, reads)


@functools.partial(jax.jit, static_argnums=0)
def _run(module, params, shared, tokens, positions, segments, given, reads=None):
    variables = bind(module.spec, params, given)
    if reads is None:
        reads = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    branches = jnp.zeros_like(tokens)
    hidden = module.apply(variables, shared, tokens, positions, segments, branches, reads)
    return module.apply(variables, hidden, method="logits")


def right_padded(rows):
    """Tokens, positions and segments of rows of unequal length."""
    lengths = np.array([len(row) for row in rows])
    tokens = np.stack([np.pad(row, (0, lengths.max() - len(row))) for row in rows])
    places = np.broadcast_to(np.arange(lengths.max()), tokens.shape)
    return tokens, places, (places < lengths[:, None]).astype(np.int32)


def rows_of(kept):
    return [row[:length] for row, length in zip(kept["tokens"], kept["lengths"], strict=True)]


def check_right_padding(model, kept):
    inputs = right_padded(rows_of(kept))
    assert_close(compute_logits(model, *inputs), kept["right"], inputs[2])


def check_left_padding(model, kept):
    rows, longest = rows_of(kept), max(kept["lengths"])
    tokens, segments = (
        np.stack([np.pad(row, (longest - len(row), 0)) for row in each])
        for each in (rows, [np.ones_like(row) for row in rows])
    )
    positions = np.maximum(segments.cumsum(1) - 1, 0)
    assert_close(compute_logits(model, tokens, positions, segments), kept["left"], segments)


def check_one_row(model, kept):
    """All examples in one row."""
    rows = rows_of(kept)
    positions = np.concatenate([np.arange(len(row)) for row in rows])[None]
    segments = np.repeat(np.arange(1, len(rows) + 1), kept["lengths"])[None]
    found = compute_logits(model, np.concatenate(rows)[None], positions, segments)
    wanted = [row[:n] for row, n in zip(kept["right"], kept["lengths"], strict=True)]
    assert_close(found, np.concatenate(wanted)[None], segments)


def check_prompt(model, kept, shared_slots):
    """Logits, loss and gradient with the prompt in front, some of its slots shared: of examples
    padded on the right, on the left, and packed into one row, by one program."""
    slots = -1 - np.arange(len(kept["prompt"]), dtype=np.int32)
    shared, own = slots[:shared_slots], slots[shared_slots:]
    rows = rows_of(kept)
    sizes = [len(own) + len(row) for row in rows]
    ends, examples = np.cumsum(sizes), range(len(rows))
    begins = [(n, n, 0) for n in examples]
    begins += [(len(rows) + n, n, ends[-1] - sizes[n]) for n in examples]
    begins += [(2 * len(rows), n, ends[n] - sizes[n]) for n in examples]
    arrays = np.zeros((5, 2 * len(rows) + 1, ends[-1]), np.int32)
    tokens, positions, segments, targets, counted = arrays
    for row, n, begin in begins:
        here = (row, slice(begin, begin + sizes[n]))
        tokens[here] = np.concatenate([own, rows[n]])
        positions[here], segments[here] = shared_slots + np.arange(sizes[n]), 1 + n
        before = (row, slice(begin + len(own) - 1, begin + sizes[n] - 1))
        targets[before], counted[before] = rows[n], 1
    (value, found), gradient = _step(*model, jnp.asarray(kept["prompt"]), shared, *arrays)
    for row, n, begin in begins:
        texts = found[row, begin + len(own) : begin + sizes[n]]
        assert_close(texts, kept["prompted"][n, : len(rows[n])], np.ones(len(rows[n])))
    np.testing.assert_allclose(value, kept["loss"], atol=TOLERANCE)
    np.testing.assert_allclose(gradient, kept["gradient"], atol=TOLERANCE)
    assert np.abs(kept["gradient"]).max() > 100 * TOLERANCE


@functools.partial(jax.jit, static_argnums=0)
def _step(module, params, prompt, shared, tokens, positions, segments, targets, counted):
    """The mean loss of all targets with all logits, and its gradient."""

    def loss(prompt):
        given = Given({"prompt/vectors": prompt})
        found = _run(module, params, shared, tokens, positions, segments, given)
        scores = jnp.take_along_axis(jax.nn.log_softmax(found), targets[..., None], axis=-1)
        return -(scores[..., 0] * counted).sum() / counted.sum(), found

    return jax.value_and_grad(loss, has_aux=True)(prompt)


def assert_close(found, wanted, segments):
    """Checks for equality at every token; the logits span far more than the tolerance."""
    real = np.asarray(segments) > 0
    assert np.abs(wanted[real]).max() > 1000 * TOLERANCE
    np.testing.assert_allclose(np.asarray(found)[real], wanted[real], atol=TOLERANCE)
