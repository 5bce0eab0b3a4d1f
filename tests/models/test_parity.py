"""The decoder against numbers that transformers on torch computed (`tests/make_fixtures.py`)."""

from pathlib import Path

import numpy as np
import parity
import pytest

from prompt_tuning_jax.models.decoder import Decoder
from prompt_tuning_jax.models.files.weights import read_weights

FIXTURES = Path(__file__).parent.parent / "fixtures"
CASES = sorted(file.parent.name for file in FIXTURES.glob("*/reference.npz"))


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """Module, weights and reference numbers of one small model."""
    folder = FIXTURES / request.param
    spec, params, _ = read_weights(str(folder), "float32")
    with np.load(folder / "reference.npz") as kept:
        return Decoder(spec, precision="highest"), params, dict(kept)


def test_there_are_fixtures_and_they_are_small():
    assert len(CASES) == 3
    assert sum(file.stat().st_size for file in FIXTURES.rglob("*") if file.is_file()) < 300_000


def test_right_padding(case):
    parity.check_right_padding(*case)


def test_left_padding(case):
    parity.check_left_padding(*case)


def test_all_examples_in_one_row(case):
    module, params, kept = case
    parts = [row[:n] for row, n in zip(kept["tokens"], kept["lengths"], strict=True)]
    tokens = np.concatenate(parts)[None]
    positions = np.concatenate([np.arange(len(part)) for part in parts])[None]
    segments = np.repeat(np.arange(1, len(parts) + 1), kept["lengths"])[None]
    empty = np.zeros(0, np.int32)
    found = parity.logits(module, params, empty, tokens, positions, segments)
    wanted = [row[:n] for row, n in zip(kept["right"], kept["lengths"], strict=True)]
    parity.assert_close(found, np.concatenate(wanted)[None], segments)


@pytest.mark.parametrize("shared_slots", [0, 3])
def test_prompt_in_front_and_its_gradient(case, shared_slots):
    parity.check_prompt(*case, shared_slots)


def test_smollm2_from_gguf():
    spec, params, _ = read_weights("smollm2-135m-instruct", "float32")
    module = Decoder(spec, precision="highest")
    with np.load(FIXTURES / "smollm2_logits.npz") as kept:
        sentences = [
            (kept[f"tokens{n}"], kept[f"ids{n}"], kept[f"logits{n}"])
            for n in range(len(kept.files) // 3)
        ]
    longest = max(len(tokens) for tokens, _, _ in sentences)
    tokens = np.stack([np.pad(row, (0, longest - len(row))) for row, _, _ in sentences])
    lengths = np.array([len(row) for row, _, _ in sentences])
    positions, segments = parity.right_padded(tokens, lengths)
    found = parity.logits(module, params, np.zeros(0, np.int32), tokens, positions, segments)
    for row, (ids, best, wanted) in zip(np.asarray(found), sentences, strict=True):
        taken = np.take_along_axis(row[: len(ids)], best, axis=-1)
        np.testing.assert_allclose(taken, wanted, atol=parity.TOLERANCE)
