"""Live against PEFT on torch: with one prompt or prefix both give the same logits."""

import accuracy
import inputs
import jax
import jax.numpy as jnp
import numpy as np
import our_side
import parity
import peft_side
import plain_model
import pytest
import tiny_models
import tiny_runs

from prompt_tuning_jax import score as scoring
from prompt_tuning_jax.data.example import Example
from prompt_tuning_jax.models.cached import bake
from prompt_tuning_jax.models.files.find import find_model
from prompt_tuning_jax.models.language_model import LanguageModel, load
from prompt_tuning_jax.models.sites import NOTHING, PROMPT, Given
from prompt_tuning_jax.score import virtual_tokens

SLOTS = 4
SMOLLM2 = "smollm2-135m-instruct"
VOCABULARY = tiny_models.SPEC.vocabulary
KINDS = pytest.mark.parametrize("kind", ["prompt", "prefix"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tiny_models.write_folder(tmp_path_factory.mktemp("llama")))


@pytest.fixture(scope="module")
def lm(folder):
    return load(folder, dtype="float32")


def random_given(spec, kind):
    """A prompt or a prefix of vectors as large as those of a model."""
    return plain_model.random_given(0, spec, kind, size=SLOTS)


def random_cases(seed, lengths=(12, 5, 9), targets=2):
    rng = np.random.default_rng(seed)
    return [inputs.Case(rng.integers(3, VOCABULARY, n).tolist(), targets) for n in lengths]


def our_logits(lm: LanguageModel, given, ids):
    """float32[T, V] behind a prompt or a prefix."""
    slots = -1 - np.arange(virtual_tokens(given))
    tokens, positions, segments = parity.right_padded([ids])
    inputs = tokens, positions + len(slots), segments, slots, given
    return np.asarray(parity.compute_logits((lm.module, lm.params), *inputs))[0]


def peft_logits(wrapped, cases):
    """float32[T, V] of each case behind what is trained, from one padded batch."""
    tensors = peft_side.batch(cases)
    length = tensors.pop("labels").shape[1]
    logits = wrapped(**tensors).logits.detach().numpy()[:, -length:]
    return [found[: len(case.ids)] for found, case in zip(logits, cases, strict=True)]


def largest_difference(lm, wrapped, given, cases):
    found = peft_logits(wrapped, cases)
    return max(
        np.abs(our_logits(lm, given, case.ids) - theirs).max()
        for case, theirs in zip(cases, found, strict=True)
    )


@KINDS
def test_peft_with_our_prompt_gives_our_logits(lm, folder, kind):
    given = random_given(lm.spec, kind)
    wrapped = peft_side.tuned(peft_side.base(folder, "float32"), given)
    jax.tree.map(np.testing.assert_array_equal, peft_side.trained(wrapped), given)
    assert largest_difference(lm, wrapped, given, random_cases(0)) < 1e-4


def trained(lm, wrapped, before):
    """The given after five steps of PEFT."""
    step, batch = peft_side.trainer(wrapped, 0.05), peft_side.batch(random_cases(1))
    losses = [step(batch) for _ in range(5)]
    after = peft_side.trained(wrapped)
    assert losses[-1] < losses[0]
    for leaf, first in zip(*map(jax.tree.leaves, (after, before)), strict=True):
        assert np.abs(leaf - first).max() > 0.1
    assert largest_difference(lm, wrapped, before, random_cases(2)) > 1e-2
    return after


@KINDS
def test_we_give_the_logits_of_peft_with_what_it_trained(lm, folder, kind):
    before = random_given(lm.spec, kind)
    wrapped = peft_side.tuned(peft_side.base(folder, "float32"), before)
    after = trained(lm, wrapped, before)
    assert largest_difference(lm, wrapped, after, random_cases(2)) < 1e-4


def test_we_give_the_logits_of_peft_with_the_prompt_of_its_encoder(lm, folder):
    wrapped = peft_side.encoded(peft_side.base(folder, "float32"), SLOTS, 8, seed=0)
    before = peft_side.trained(wrapped)
    assert largest_difference(lm, wrapped, before, random_cases(2)) < 1e-4
    after = trained(lm, wrapped, before)
    assert largest_difference(lm, wrapped, after, random_cases(2)) < 1e-4


@KINDS
def test_both_train_alike(folder, kind):
    model = our_side.load(folder, "float32", "named")
    updates = [random_cases(seed, (11, 4, 7, 9)) for seed in range(6)]
    method = {"prompt": "soft_prompt", "prefix": "prefix"}[kind]
    first = our_side.first(model, method, SLOTS)
    base = peft_side.base(folder, "float32")
    jax.tree.map(np.testing.assert_array_equal, peft_side.first(base, method, SLOTS), first)
    step = peft_side.trainer(peft_side.tuned(base, jax.device_get(first)), 0.02)
    ours = our_side.stepper(our_side.prepare(model, updates, first, 0.02))
    losses = [(ours(n), step(peft_side.batch(update))) for n, update in enumerate(updates)]
    np.testing.assert_allclose(*zip(*losses, strict=True), atol=1e-4)


@pytest.mark.parametrize(
    "method",
    [
        ["name=lora", "rank=2", "alpha=7"],
        ["name=lora", "rank=4", "rank_stabilised=true", "targets=('attention/q',)"],
        ["name=ia3"],
        ["name=fine_tuning"],
    ],
    ids=" ".join,
)
def test_both_sides_of_the_accuracy_run_the_same_recipe(method, monkeypatch):
    keys = [f"--config.method.{each}" for each in method]
    with tiny_runs.at_home(monkeypatch):
        _, _, config = tiny_runs.tiny(*keys, "--config.learning_rate=0.01")
        ours, theirs = (side(config, 1) for side in (accuracy.ours, accuracy.peft))
    assert ours["validation_loss"] == pytest.approx(theirs["validation_loss"], abs=1e-4)
    assert ours["test_right"] == theirs["test_right"]


def test_a_key_that_only_our_side_has_is_refused(monkeypatch):
    _, _, config = tiny_runs.tiny("--config.method.name=lora", "--config.method.dropout=0.1")
    with pytest.raises(SystemExit, match=r"PEFT's side has no method.dropout: it has to be 0.0"):
        accuracy.wrap(config, None, NOTHING)


@KINDS
def test_both_score_answers_alike(lm, folder, kind):
    given = random_given(lm.spec, kind)
    wrapped = peft_side.tuned(peft_side.base(folder, "float32"), given)
    cases = random_cases(3, range(3, 24), targets=0)
    answers = [[7], [8], [30]]
    slots = [-1 - slot for slot in range(virtual_tokens(given))]
    examples = [
        Example(
            np.array([*slots, *case.ids], np.int32), tuple(map(np.array, answers)), 0, len(slots), 0
        )
        for case in cases
    ]
    ours = scoring.score(lm, examples, given, jax.devices()[:1])
    theirs = peft_side.answer_scores(wrapped, cases, answers, size=4)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


@KINDS
def test_peft_gives_our_logits_on_smollm2(kind):
    """With a text as the prompt, and with its keys and values that we computed."""
    lm = load(SMOLLM2, dtype="float32")
    headline = "Headline: Ink helps drive democracy in Asia\nTopic: politics"
    words = lm.tokenizer.encode("business, politics or")[0]
    assert len(words) == SLOTS
    given = Given({PROMPT: lm.params["embed"]["embedding"][jnp.array(words)]})
    if kind == "prefix":
        given = bake(lm, np.array(words), NOTHING)
    given = jax.device_get(given)
    base = peft_side.base(str(find_model(SMOLLM2)), "float32")
    wrapped = peft_side.tuned(base, given)
    cases = [inputs.Case(lm.tokenizer.encode(headline)[0], 1)]
    assert largest_difference(lm, wrapped, given, cases) < 1e-4
