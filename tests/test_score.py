"""Scores of all answers against the plain model, which takes one answer at a time."""

import dataclasses

import jax
import numpy as np
import plain_model
import pytest
from tiny_models import SPEC, flatten

from prompt_tuning_jax import api
from prompt_tuning_jax import score as scoring
from prompt_tuning_jax.data.batch import evaluation_batches, evaluation_shape
from prompt_tuning_jax.data.demonstrations import choose_demonstrations
from prompt_tuning_jax.data.encode import encode_examples
from prompt_tuning_jax.data.example import Example
from prompt_tuning_jax.data.task import Source, Task
from prompt_tuning_jax.errors import UserError
from prompt_tuning_jax.models import cached
from prompt_tuning_jax.models.sites import NOTHING, Given

MODEL, PLAIN = plain_model.make()
FRONT = (1, -1, -2, 40)
COUNT = 61  # fills no number of batches


@pytest.fixture
def seen(monkeypatch):
    """Makes batches small, and notes the indexes of the examples in each batch."""
    indexes = []

    def small(*given, **named):
        return evaluation_shape(*given, **named, positions=60)

    def noted(*given, **named):
        for batch, index in evaluation_batches(*given, **named):
            indexes.append(index)
            yield batch, index

    monkeypatch.setattr(scoring.batching, "evaluation_shape", small)
    monkeypatch.setattr(scoring.batching, "evaluation_batches", noted)
    return indexes


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("names", [("prompt",), ("prompt", "prefix")])
def test_scores_are_those_of_each_answer_alone(seen, names, devices):
    given = plain_model.random_given(1, SPEC, *names, size=2)
    examples = plain_model.random_examples(2, COUNT, FRONT, back=(-1, 50), answers=4)
    found = scoring.score(MODEL, examples, given, jax.devices()[:devices])
    assert found.shape == (COUNT, 4) and found.dtype == np.float32
    wanted = plain_model.answer_scores(PLAIN, examples, given)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
    assert len(seen) >= 2 and len({len(index) for index in seen}) > 1
    assert sorted(np.concatenate(seen)) == list(range(COUNT))


def test_a_fine_tuned_leaf_is_read_in_the_dtype_of_the_model():
    lm = MODEL._replace(params=jax.tree.map(lambda leaf: leaf.astype("bfloat16"), MODEL.params))
    path = "layers/attention/q/weight"
    leaves = [flatten(model.params)[path] for model in (MODEL, lm)]
    examples = plain_model.random_examples(2, 5, (1, 40), answers=2)
    found = [scoring.score(lm, examples, Given(params={path: leaf})) for leaf in leaves]
    np.testing.assert_array_equal(*found)


def test_words_of_several_tokens_score_as_one_label_at_a_time():
    labels = (("n", "not at all"), ("y", "yes"), ("p", "yes, but"), ("d", "日本 or so"))
    task = Task("asked", "{soft}Is {text} it?", labels, (), ("text",), None)
    rows = [{"text": "the inn", "label": "p"}, {"text": "é", "label": "n"}, {"text": " the"}]
    arguments = {"num_virtual_tokens": 2, "add_bos": True, "max_length": 99}
    examples = encode_examples(task, rows, MODEL.tokenizer, **arguments)
    assert [example.answer for example in examples] == [2, 0, -1]
    given = plain_model.random_given(1, SPEC, "prompt", size=2)
    found = scoring.score(MODEL, examples, given, jax.devices()[:1])
    for row, scores in zip(rows, found, strict=True):
        for label, score in zip(labels, scores, strict=True):
            # The whole text of one label, tokenised and scored on its own.
            ids = [MODEL.tokenizer.bos_id, -1, -2]
            ids += MODEL.tokenizer.encode(f"Is {row['text']} it? {label[1]}")[0]
            likely = plain_model.log_probabilities(PLAIN, ids[:-1], given)
            begin = len(ids) - len(MODEL.tokenizer.encode(f" {label[1]}")[0])
            wanted = sum(likely[place - 1, ids[place]] for place in range(begin, len(ids)))
            assert score == pytest.approx(wanted, abs=1e-4)


def test_answers_larger_than_memory_are_refused_before_any_is_taken():
    """The words of all labels share a row, so 60,000 of one token take a terabyte."""
    answers = tuple(np.array([1], np.int32) for _ in range(60_000))
    examples = [Example(np.arange(5, dtype=np.int32), answers, 0, 2, 0)]
    with pytest.raises(UserError, match=r"\d+,\d+ positions, for which .* GB .* fewer or shorter"):
        scoring.score(
            MODEL, examples, NOTHING, jax.devices()[:1], scoring.batching.Shape(4, 100_000, 1, 1)
        )


def test_a_single_answer_has_a_loss_and_no_accuracy():
    assert scoring.loss_and_accuracy(np.array([[-2.0], [-4.0]], np.float32), np.array([0, 0])) == {
        "loss": 3.0,
        "examples": 2,
    }


def test_examples_may_share_nothing_and_nothing_be_trained(seen):
    examples = plain_model.random_examples(3, 9, (), answers=2)
    found = scoring.score(MODEL, examples, NOTHING, jax.devices()[:1])
    wanted = plain_model.answer_scores(PLAIN, examples)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


def test_one_example_over_more_devices_than_rows(seen):
    examples = plain_model.random_examples(4, 1, FRONT, back=(-1, 50), answers=4)
    given = plain_model.random_given(1, SPEC, "prompt", size=2)
    found = scoring.score(MODEL, examples, given)
    wanted = plain_model.answer_scores(PLAIN, examples, given)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


def test_the_order_of_the_examples_does_not_change_their_scores(seen):
    given = plain_model.random_given(1, SPEC, "prompt", size=2)
    examples = plain_model.random_examples(2, COUNT, FRONT, back=(-1, 50), answers=4)
    found = scoring.score(MODEL, examples, given)
    turned = scoring.score(MODEL, examples[::-1], given)
    np.testing.assert_allclose(turned[::-1], found, rtol=0, atol=1e-5)
    again = scoring.score(MODEL, examples, given)
    np.testing.assert_array_equal(again, found)


def test_the_same_shape_is_compiled_once(seen):
    given = plain_model.random_given(1, SPEC, "prompt", size=2)
    examples = plain_model.random_examples(2, COUNT, FRONT, back=(-1, 50), answers=4)
    scoring.score(MODEL, examples, given)
    compiled = scoring._compile(MODEL.module, scoring.make_mesh(jax.devices()), MODEL.layout)
    before = compiled._cache_size(), cached._bake._cache_size()
    assert min(before) > 0
    others = jax.tree.map(lambda leaf: leaf + 1, given)
    scoring.score(MODEL, examples, others)
    assert (compiled._cache_size(), cached._bake._cache_size()) == before


def test_demonstrations_are_shared_and_score_as_the_whole_text(monkeypatch):
    """Compared with one text for each example, written by hand and read by the plain model."""
    model, plain = plain_model.make(dataclasses.replace(SPEC, max_positions=400))
    train = [{"text": f"the {n} in", "label": "no" if n % 2 else "yes"} for n in range(8)]
    rows = [{"text": "the thin", "label": "yes"}, {"text": "{text} <|eos|>", "label": "no"}]
    source = Source({"train": train, "test": rows}, {})
    labels = (("yes", "y"), ("no", "in the"))
    task = Task("lines", "{soft}Text: {text}\nA:", labels, (), ("text",), lambda: source)
    shown = choose_demonstrations(train, 4, balanced=True)
    baked = []
    bake = scoring.bake
    monkeypatch.setattr(
        scoring, "bake", lambda lm, shared, rest: baked.append(shared) or bake(lm, shared, rest)
    )
    found = api.evaluate(model, task, split="test", prompt="Well. ", demonstrations=shown)

    words = dict(labels)
    front = "".join(f"Well. Text: {r['text']}\nA: {words[r['label']]}\n\n" for r in shown)
    losses = []
    for row in rows:
        question = [1, *model.tokenizer.encode(f"{front}Well. Text: {row['text']}\nA:")[0]]
        answer = model.tokenizer.encode(f" {words[row['label']]}")[0]
        example = Example(np.array(question), (np.array(answer),), 0, 0, 0)
        losses.append(-plain_model.target_scores(plain, example, 0).sum())
    assert found["loss"] == pytest.approx(np.mean(losses), abs=1e-4)
    assert (found["demonstrations"], found["examples"]) == (4, 2)
    # BOS, the demonstrations and the question's own beginning are computed once.
    [shared] = baked
    assert model.tokenizer.decode(shared[1:]) == f"{front}Well. Text:"


def test_loss_and_accuracy_are_those_computed_by_hand():
    scores = np.log(np.array([[0.5, 0.2], [0.1, 0.4], [0.25, 0.125]], np.float32))
    found = scoring.loss_and_accuracy(scores, np.array([0, 0, 0]))
    assert found["examples"] == 3
    assert found["accuracy"] == pytest.approx(2 / 3)
    # Whole words' log-probabilities, not what is left of them among the answers.
    assert found["loss"] == pytest.approx(-np.log(0.5 * 0.1 * 0.25) / 3)
    assert all(type(value) in (int, float) for value in found.values())
