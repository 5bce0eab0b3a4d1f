"""Generation against transformers' `generate` with its cache and PEFT's: the same tokens."""

import copy

import inputs
import jax.numpy as jnp
import numpy as np
import peft_side
import pytest
import tiny_models

from prompt_tuning_jax.data.example import Example
from prompt_tuning_jax.generate import Settings, generate
from prompt_tuning_jax.models.files.find import find_model
from prompt_tuning_jax.models.language_model import load
from prompt_tuning_jax.models.sites import NOTHING, PROMPT, Given

SMOLLM2 = "smollm2-135m-instruct"
SLOTS, TOKENS = 4, 16


def random_cases(seed, lengths=(12, 5, 9, 1, 30)):
    rng = np.random.default_rng(seed)
    size = tiny_models.SPEC.vocabulary
    return [inputs.Case(rng.integers(3, size, length).tolist(), 0) for length in lengths]


def ours(lm, cases, vectors=None, tokens=TOKENS):
    """The ids that we write, without an end of text."""
    endless = copy.copy(lm.tokenizer)
    endless.end_ids = []
    slots = [] if vectors is None else [-1 - slot for slot in range(len(vectors))]
    examples = [
        Example(np.array([*slots, *case.ids], np.int32), (), -1, len(slots), 0) for case in cases
    ]
    given = NOTHING if vectors is None else Given({PROMPT: vectors})
    settings = Settings(max_new_tokens=tokens)
    written = generate(lm._replace(tokenizer=endless), examples, given, settings)
    return [each.ids for each in written]


def one_by_one(wrapped, cases, tokens):
    """PEFT's texts. With a prompt it counts padding on the left as positions, so that its text
    depends on the longest one in the batch."""
    return [peft_side.write(wrapped, [case], tokens)[0] for case in cases]


@pytest.mark.parametrize("name", tiny_models.SPECS)
def test_random_models(tmp_path, name):
    folder = str(tiny_models.write_folder(tmp_path, tiny_models.SPECS[name]))
    cases, lm = random_cases(0), load(folder, dtype="float32", matmul_precision="highest")
    theirs = peft_side.write(peft_side.base(folder, "float32"), cases, TOKENS)
    assert ours(lm, cases) == theirs
    assert len(set(map(tuple, theirs))) > len(cases) / 2


def test_a_random_model_with_a_prompt_in_peft(tmp_path):
    folder = str(tiny_models.write_folder(tmp_path))
    vectors = np.random.default_rng(0).normal(0, 0.2, (SLOTS, tiny_models.SPEC.width))
    vectors = vectors.astype(np.float32)
    cases, lm = random_cases(1), load(folder, dtype="float32", matmul_precision="highest")
    wrapped = peft_side.tuned(peft_side.base(folder, "float32"), Given({PROMPT: vectors}))
    theirs = one_by_one(wrapped, cases, TOKENS)
    assert ours(lm, cases, vectors) == theirs != ours(lm, cases)


def test_smollm2_alone_and_with_a_prompt_in_peft():
    lm = load(SMOLLM2, dtype="float32", matmul_precision="highest")
    texts = [
        "Headline: Ink helps drive democracy in Asia\nTopic:",
        "Once upon a time",
        "name[Zizzi], eatType[coffee shop], area[riverside]\nDescription:",
    ]
    cases = [inputs.Case(lm.tokenizer.encode(text)[0], 0) for text in texts]
    base = peft_side.base(str(find_model(SMOLLM2)), "float32")
    theirs = peft_side.write(base, cases, 24)
    assert ours(lm, cases, tokens=24) == theirs
    words = jnp.array(lm.tokenizer.encode("In plain words:")[0])
    vectors = np.asarray(lm.params["embed"]["embedding"][words])
    wrapped = peft_side.tuned(base, Given({PROMPT: vectors}))
    prompted = one_by_one(wrapped, cases, 24)
    assert ours(lm, cases, vectors, tokens=24) == prompted != theirs
