"""The decoder against numbers that transformers on torch computed (`tests/make_fixtures.py`)."""

from pathlib import Path

import numpy as np
import parity
import pytest

FIXTURES = Path(__file__).parent.parent / "fixtures"
CASES = sorted(file.parent.name for file in FIXTURES.glob("*/reference.npz"))


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """Model and reference numbers of one small model."""
    folder = FIXTURES / request.param
    with np.load(folder / "reference.npz") as kept:
        return parity.read_model(folder), dict(kept)


def test_there_are_fixtures_and_they_are_small():
    assert len(CASES) == 3
    assert sum(file.stat().st_size for file in FIXTURES.rglob("*") if file.is_file()) < 300_000


CHECKS = (parity.check_right_padding, parity.check_left_padding, parity.check_one_row)


@pytest.mark.parametrize("check", CHECKS)
def test_logits_are_those_of_transformers(case, check):
    check(*case)


@pytest.mark.parametrize("shared_slots", [0, 3])
def test_a_prompt_in_front_and_its_gradient_are_those_of_transformers(case, shared_slots):
    parity.check_prompt(*case, shared_slots)


def test_smollm2_from_gguf_is_that_of_transformers():
    with np.load(FIXTURES / "smollm2_logits.npz") as kept:
        sentences = [
            (kept[f"tokens{n}"], kept[f"ids{n}"], kept[f"logits{n}"])
            for n in range(len(kept.files) // 3)
        ]
    inputs = parity.right_padded([tokens for tokens, _, _ in sentences])
    found = parity.compute_logits(parity.read_model("smollm2-135m-instruct"), *inputs)
    for row, (ids, best, wanted) in zip(np.asarray(found), sentences, strict=True):
        taken = np.take_along_axis(row[: len(ids)], best, axis=-1)
        np.testing.assert_allclose(taken, wanted, atol=parity.TOLERANCE)
