"""PEFT on torch, live: with our prompt it gives our logits, and we give its with its own."""

import importlib
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models

from prompt_tuning_jax import scoring
from prompt_tuning_jax.data.template import Example
from prompt_tuning_jax.models import LanguageModel, load, weights

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
inputs, our_side, peft_side = map(importlib.import_module, ("inputs", "our_side", "peft_side"))

SLOTS = 4
SMOLLM2 = "smollm2-135m-instruct"
VOCABULARY = tiny_models.SPEC.vocabulary


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Several of torch's wait for each other in a loop, which takes minutes beside other work."""
    peft_side.use_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tiny_models.write_folder(tmp_path_factory.mktemp("llama")))


@pytest.fixture(scope="module")
def lm(folder):
    return load(folder, dtype="float32")


def random_prompt(width, seed=0):
    return np.random.default_rng(seed).normal(0, 0.2, (SLOTS, width)).astype(np.float32)


def random_cases(seed, lengths=(12, 5, 9), targets=2):
    rng = np.random.default_rng(seed)
    return [inputs.Case(rng.integers(3, VOCABULARY, n).tolist(), targets) for n in lengths]


def our_logits(lm: LanguageModel, vectors, ids):
    """float32[T, V] behind the prompt, plainly: one example, every position read."""
    length = len(ids)
    slots = -1 - jnp.arange(len(vectors))
    row = jnp.arange(length)[None]
    hidden = lm.module.apply(
        variables := {"params": lm.params, "prompt": {"vectors": jnp.asarray(vectors)}},
        slots,
        jnp.array([ids]),
        len(vectors) + row,
        jnp.ones_like(row),
        jnp.zeros_like(row),
        row,
    )
    return np.asarray(lm.module.apply(variables, hidden, method="logits"))[0]


def peft_logits(wrapped, cases):
    """float32[T, V] of each case behind the prompt, from one padded batch."""
    tensors = peft_side.batch(cases)
    del tensors["labels"]
    logits = wrapped(**tensors).logits.detach().numpy()[:, SLOTS:]
    return [found[: len(case.ids)] for found, case in zip(logits, cases, strict=True)]


def largest_difference(lm, wrapped, vectors, cases):
    found = peft_logits(wrapped, cases)
    return max(
        np.abs(our_logits(lm, vectors, case.ids) - theirs).max()
        for case, theirs in zip(cases, found, strict=True)
    )


def test_peft_with_our_prompt_gives_our_logits(lm, folder):
    vectors = random_prompt(lm.spec.width)
    wrapped = peft_side.tuned(peft_side.base(folder, "float32"), vectors)
    assert largest_difference(lm, wrapped, vectors, random_cases(0)) < 1e-4


def test_we_with_the_prompt_that_peft_trained_give_its_logits(lm, folder):
    before = random_prompt(lm.spec.width)
    wrapped = peft_side.tuned(peft_side.base(folder, "float32"), before)
    step, batch = peft_side.trainer(wrapped, 0.05), peft_side.batch(random_cases(1))
    losses = [step(batch) for _ in range(5)]
    after = peft_side.vectors(wrapped)
    assert losses[-1] < losses[0]
    assert np.abs(after - before).max() > 0.1
    assert largest_difference(lm, wrapped, after, random_cases(2)) < 1e-4
    assert largest_difference(lm, wrapped, before, random_cases(2)) > 1e-2


def test_both_train_alike(folder):
    model = our_side.load(folder, "float32", "named")
    updates = [random_cases(seed, (11, 4, 7, 9)) for seed in range(6)]
    training = our_side.prepare(model, updates, SLOTS, 0.02)
    ours = our_side.stepper(training)
    base = peft_side.base(folder, "float32")
    step = peft_side.trainer(peft_side.tuned(base, peft_side.embeddings(base, SLOTS)), 0.02)
    losses = [(ours(n), step(peft_side.batch(update))) for n, update in enumerate(updates)]
    np.testing.assert_allclose(*zip(*losses, strict=True), atol=1e-4)


def test_both_score_answers_alike(lm, folder):
    vectors = random_prompt(lm.spec.width)
    wrapped = peft_side.tuned(peft_side.base(folder, "float32"), vectors)
    cases = random_cases(3, range(3, 24), targets=0)
    answers = [[7], [8], [30]]
    slots = [-1 - slot for slot in range(SLOTS)]
    examples = [
        Example(np.array([*slots, *case.ids], np.int32), tuple(map(np.array, answers)), 0, SLOTS, 0)
        for case in cases
    ]
    ours = scoring.score(lm, examples, {"prompt": {"vectors": vectors}}, jax.devices()[:1])
    theirs = peft_side.answer_scores(wrapped, cases, answers, size=4)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_peft_gives_our_logits_on_smollm2():
    lm = load(SMOLLM2, dtype="float32")
    headline = "Headline: Ink helps drive democracy in Asia\nTopic: politics"
    words = lm.tokenizer.encode("business, politics or")[0]
    vectors = np.asarray(lm.params["embed"]["embedding"][jnp.array(words)])
    assert len(vectors) == SLOTS
    wrapped = peft_side.tuned(peft_side.base(str(weights.locate(SMOLLM2)), "float32"), vectors)
    cases = [inputs.Case(lm.tokenizer.encode(headline)[0], 1)]
    assert largest_difference(lm, wrapped, vectors, cases) < 1e-4
