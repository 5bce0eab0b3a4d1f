"""The decoder against numbers that transformers on torch computed (`tests/make_fixtures.py`)."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning_jax.models import weights
from prompt_tuning_jax.models.decoder import Decoder

FIXTURES = Path(__file__).parent.parent / "fixtures"
CASES = sorted(folder.name for folder in FIXTURES.iterdir() if folder.is_dir())
TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """Module, weights and reference numbers of one small model."""
    folder = FIXTURES / request.param
    spec, params, _ = weights.read(str(folder), "float32")
    with np.load(folder / "reference.npz") as kept:
        return Decoder(spec, precision="highest"), params, dict(kept)


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


def test_there_are_fixtures_and_they_are_small():
    assert len(CASES) == 3
    assert sum(file.stat().st_size for file in FIXTURES.rglob("*") if file.is_file()) < 300_000


def test_right_padding(case):
    module, params, kept = case
    positions, segments = right_padded(kept["tokens"], kept["lengths"])
    empty = np.zeros(0, np.int32)
    found = logits(module, params, empty, kept["tokens"], positions, segments)
    assert_close(found, kept["right"], segments)


def test_left_padding(case):
    module, params, kept = case
    longest = kept["tokens"].shape[1]
    _, segments = right_padded(kept["tokens"], kept["lengths"])
    tokens = np.stack([
        np.roll(row, longest - length)
        for row, length in zip(kept["tokens"], kept["lengths"], strict=True)
    ])  # fmt: skip
    segments = segments[:, ::-1]
    positions = np.maximum(segments.cumsum(1) - 1, 0)
    found = logits(module, params, np.zeros(0, np.int32), tokens, positions, segments)
    assert_close(found, kept["left"], segments)


def test_all_examples_in_one_row(case):
    module, params, kept = case
    parts = [row[:n] for row, n in zip(kept["tokens"], kept["lengths"], strict=True)]
    tokens = np.concatenate(parts)[None]
    positions = np.concatenate([np.arange(len(part)) for part in parts])[None]
    segments = np.repeat(np.arange(1, len(parts) + 1), kept["lengths"])[None]
    found = logits(module, params, np.zeros(0, np.int32), tokens, positions, segments)
    wanted = [row[:n] for row, n in zip(kept["right"], kept["lengths"], strict=True)]
    assert_close(found, np.concatenate(wanted)[None], segments)


def prompted(kept, shared_slots):
    """Inputs with the prompt in front: some of its slots shared, the rest in every row."""
    slots = -1 - np.arange(len(kept["prompt"]), dtype=np.int32)
    shared, own = slots[:shared_slots], slots[shared_slots:]
    rows = np.broadcast_to(own, (len(kept["tokens"]), len(own)))
    tokens = np.concatenate([rows, kept["tokens"]], axis=1)
    positions, segments = right_padded(tokens, kept["lengths"] + len(own))
    return shared, tokens, positions + shared_slots, segments


@pytest.mark.parametrize("shared_slots", [0, 3])
def test_prompt_in_front(case, shared_slots):
    module, params, kept = case
    inputs = prompted(kept, shared_slots)
    own = len(kept["prompt"]) - shared_slots
    found = logits(module, params, *inputs, kept["prompt"])[:, own:]
    assert_close(found, kept["prompted"], inputs[3][:, own:])


@pytest.mark.parametrize(
    ("shared_slots", "remat"), [(0, "named"), (3, "named"), (3, "full"), (3, "none")]
)
def test_gradient_of_the_prompt(case, shared_slots, remat):
    module, params, kept = case
    module = module.clone(remat=remat)
    inputs = prompted(kept, shared_slots)
    own = len(kept["prompt"]) - shared_slots
    _, counted = right_padded(kept["tokens"], kept["lengths"])

    def loss(prompt):
        scores = jax.nn.log_softmax(logits(module, params, *inputs, prompt)[:, own - 1 : -1])
        chosen = jnp.take_along_axis(scores, kept["tokens"][..., None], axis=-1)[..., 0]
        return -(chosen * counted).sum() / counted.sum()

    value, gradient = jax.jit(jax.value_and_grad(loss))(jnp.asarray(kept["prompt"]))
    np.testing.assert_allclose(value, kept["loss"], atol=TOLERANCE)
    np.testing.assert_allclose(gradient, kept["gradient"], atol=TOLERANCE)
    assert np.abs(kept["gradient"]).max() > 100 * TOLERANCE


def test_smollm2_from_gguf():
    spec, params, _ = weights.read("smollm2-135m-instruct", "float32")
    module = Decoder(spec, precision="highest")
    with np.load(FIXTURES / "smollm2_logits.npz") as kept:
        sentences = [
            (kept[f"tokens{n}"], kept[f"ids{n}"], kept[f"logits{n}"])
            for n in range(len(kept.files) // 3)
        ]
    longest = max(len(tokens) for tokens, _, _ in sentences)
    tokens = np.stack([np.pad(row, (0, longest - len(row))) for row, _, _ in sentences])
    lengths = np.array([len(row) for row, _, _ in sentences])
    positions, segments = right_padded(tokens, lengths)
    found = logits(module, params, np.zeros(0, np.int32), tokens, positions, segments)
    for row, (ids, best, wanted) in zip(np.asarray(found), sentences, strict=True):
        taken = np.take_along_axis(row[: len(ids)], best, axis=-1)
        np.testing.assert_allclose(taken, wanted, atol=TOLERANCE)


def assert_close(found, wanted, segments):
    """Equal to the tolerance wherever there is a token; logits span far more than that."""
    real = np.asarray(segments) > 0
    assert np.abs(wanted[real]).max() > 1000 * TOLERANCE
    np.testing.assert_allclose(np.asarray(found)[real], wanted[real], atol=TOLERANCE)
