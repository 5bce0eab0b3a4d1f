"""Our decoder on the inputs of `make_fixtures.Reference`, and the comparison with its numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

TOLERANCE = 1e-4


@functools.partial(jax.jit, static_argnums=0)
def logits(module, params, shared, tokens, positions, segments, prompt=None):
    """float32[R, T, V]: every position of every row."""
    variables = {"params": params} | ({} if prompt is None else {"prompt": {"vectors": prompt}})
    everywhere = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    branches = jnp.zeros_like(tokens)
    hidden = module.apply(variables, shared, tokens, positions, segments, branches, everywhere)
    return module.apply(variables, hidden, method="logits")


def right_padded(tokens, lengths):
    """Positions and segments of rows that begin with their example."""
    places = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    return places, (places < lengths[:, None]).astype(np.int32)


def prompted(kept, shared_slots):
    """Inputs with the prompt in front: some of its slots shared, the rest in every row."""
    slots = -1 - np.arange(len(kept["prompt"]), dtype=np.int32)
    shared, own = slots[:shared_slots], slots[shared_slots:]
    rows = np.broadcast_to(own, (len(kept["tokens"]), len(own)))
    tokens = np.concatenate([rows, kept["tokens"]], axis=1)
    positions, segments = right_padded(tokens, kept["lengths"] + len(own))
    return shared, tokens, positions + shared_slots, segments


def check_right_padding(module, params, kept):
    positions, segments = right_padded(kept["tokens"], kept["lengths"])
    empty = np.zeros(0, np.int32)
    found = logits(module, params, empty, kept["tokens"], positions, segments)
    assert_close(found, kept["right"], segments)


def check_left_padding(module, params, kept):
    longest = kept["tokens"].shape[1]
    _, segments = right_padded(kept["tokens"], kept["lengths"])
    tokens = np.stack([
        np.roll(row, longest - length)
        for row, length in zip(kept["tokens"], kept["lengths"], strict=True)
    ])  # fmt: skip
    segments = segments[:, ::-1]
    positions = np.maximum(segments.cumsum(1) - 1, 0)
    empty = np.zeros(0, np.int32)
    found = logits(module, params, empty, tokens, positions, segments)
    assert_close(found, kept["left"], segments)


def check_prompt(module, params, kept, shared_slots):
    """Logits, loss and gradient with the prompt in front, some of its slots shared."""
    inputs = prompted(kept, shared_slots)
    own = len(kept["prompt"]) - shared_slots
    _, counted = right_padded(kept["tokens"], kept["lengths"])

    def loss(prompt):
        found = logits(module, params, *inputs, prompt)
        scores = jax.nn.log_softmax(found[:, own - 1 : -1])
        chosen = jnp.take_along_axis(scores, kept["tokens"][..., None], axis=-1)[..., 0]
        return -(chosen * counted).sum() / counted.sum(), found[:, own:]

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, found), gradient = step(jnp.asarray(kept["prompt"]))
    assert_close(found, kept["prompted"], counted)
    np.testing.assert_allclose(value, kept["loss"], atol=TOLERANCE)
    np.testing.assert_allclose(gradient, kept["gradient"], atol=TOLERANCE)
    assert np.abs(kept["gradient"]).max() > 100 * TOLERANCE


def assert_close(found, wanted, segments):
    """Equal to the tolerance wherever there is a token; logits span far more than that."""
    real = np.asarray(segments) > 0
    assert np.abs(wanted[real]).max() > 1000 * TOLERANCE
    np.testing.assert_allclose(np.asarray(found)[real], wanted[real], atol=TOLERANCE)
