"""Token for token what transformers' `generate` writes with its cache, and PEFT with a prompt."""

import copy
import importlib
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models

from prompt_tuning_jax.data.example import Example
from prompt_tuning_jax.generate import Settings, generate
from prompt_tuning_jax.models.files.find import find_model
from prompt_tuning_jax.models.language_model import load

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
inputs, peft_side = map(importlib.import_module, ("inputs", "peft_side"))

SMOLLM2 = "smollm2-135m-instruct"
SLOTS, TOKENS = 4, 16
SPECS = {
    "grouped": tiny_models.SPEC,
    "own head": tiny_models.changed(tied_head=False, kv_heads=4),
    "one layer more": tiny_models.changed(layers=4, kv_heads=1, rope_theta=500.0),
}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Several of torch's wait for each other in a loop, which takes minutes beside other work."""
    peft_side.use_threads(1)


def random_cases(seed, lengths=(12, 5, 9, 1, 30)):
    rng = np.random.default_rng(seed)
    size = tiny_models.SPEC.vocabulary
    return [inputs.Case(rng.integers(3, size, length).tolist(), 0) for length in lengths]


def ours(lm, cases, vectors=None, tokens=TOKENS):
    """The ids that we write, the end of a text ending nothing."""
    endless = copy.copy(lm.tokenizer)
    endless.eos_id = None
    slots = [] if vectors is None else [-1 - slot for slot in range(len(vectors))]
    examples = [
        Example(np.array([*slots, *case.ids], np.int32), (), -1, len(slots), 0) for case in cases
    ]
    collections = {} if vectors is None else {"prompt": {"vectors": vectors}}
    settings = Settings(max_new_tokens=tokens)
    written = generate(lm._replace(tokenizer=endless), examples, collections, settings)
    return [each.ids for each in written]


def one_by_one(wrapped, cases, tokens):
    """PEFT's texts. With a prompt it gives padding on the left positions of its own, so that what
    it writes in a batch depends on the longest text there."""
    return [peft_side.write(wrapped, [case], tokens)[0] for case in cases]


@pytest.mark.parametrize("name", SPECS)
def test_random_llamas(tmp_path, name):
    folder = str(tiny_models.write_folder(tmp_path, SPECS[name]))
    cases, lm = random_cases(0), load(folder, dtype="float32", matmul_precision="highest")
    theirs = peft_side.write(peft_side.base(folder, "float32"), cases, TOKENS)
    assert ours(lm, cases) == theirs
    assert len(set(map(tuple, theirs))) == len(cases)


def test_a_random_llama_with_peft_s_prompt(tmp_path):
    folder = str(tiny_models.write_folder(tmp_path))
    vectors = np.random.default_rng(0).normal(0, 0.2, (SLOTS, tiny_models.SPEC.width))
    vectors = vectors.astype(np.float32)
    cases, lm = random_cases(1), load(folder, dtype="float32", matmul_precision="highest")
    wrapped = peft_side.tuned(peft_side.base(folder, "float32"), {"prompt": {"vectors": vectors}})
    theirs = one_by_one(wrapped, cases, TOKENS)
    assert ours(lm, cases, vectors) == theirs != ours(lm, cases)


def test_smollm2_alone_and_with_peft_s_prompt():
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
    wrapped = peft_side.tuned(base, {"prompt": {"vectors": vectors}})
    prompted = one_by_one(wrapped, cases, 24)
    assert ours(lm, cases, vectors, tokens=24) == prompted != theirs
