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


def compute_logits(model, tokens, positions, segments, shared=(), given=NOTHING):
    """float32[R, T, V] at every position of every row."""
    return _run(*model, np.array(shared, np.int32), tokens, positions, segments, given)


@functools.partial(jax.jit, static_argnums=0)
def _run(module, params, shared, tokens, positions, segments, given):
    variables = bind(module.spec, params, given)
    everywhere = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    branches = jnp.zeros_like(tokens)
    hidden = module.apply(variables, shared, tokens, positions, segments, branches, everywhere)
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
    """Logits, loss and gradient with the prompt in front, some of its slots shared."""
    slots = -1 - np.arange(len(kept["prompt"]), dtype=np.int32)
    shared, own = slots[:shared_slots], slots[shared_slots:]
    rows = [np.concatenate([own, row]) for row in rows_of(kept)]
    tokens, positions, segments = right_padded(rows)
    counted = right_padded(rows_of(kept))[2]

    def loss(prompt):
        given = Given({"prompt/vectors": prompt})
        found = compute_logits(model, tokens, positions + shared_slots, segments, shared, given)
        scores = jax.nn.log_softmax(found[:, len(own) - 1 : -1])
        chosen = jnp.take_along_axis(scores, kept["tokens"][..., None], axis=-1)[..., 0]
        return -(chosen * counted).sum() / counted.sum(), found[:, len(own) :]

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, found), gradient = step(jnp.asarray(kept["prompt"]))
    assert_close(found, kept["prompted"], counted)
    np.testing.assert_allclose(value, kept["loss"], atol=TOLERANCE)
    np.testing.assert_allclose(gradient, kept["gradient"], atol=TOLERANCE)
    assert np.abs(kept["gradient"]).max() > 100 * TOLERANCE


def assert_close(found, wanted, segments):
    """Checks for equality at every token; the logits span far more than the tolerance."""
    real = np.asarray(segments) > 0
    assert np.abs(wanted[real]).max() > 1000 * TOLERANCE
    np.testing.assert_allclose(np.asarray(found)[real], wanted[real], atol=TOLERANCE)
