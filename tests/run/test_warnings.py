"""Warnings: what each looks at, and that it says nothing where nothing is wrong."""

import re

import jax.numpy as jnp
import numpy as np
import plain_model
import pytest
from ml_collections import ConfigDict
from tiny_models import SPEC

from prompt_tuning_jax import config as configs
from prompt_tuning_jax.quantization import quantize
from prompt_tuning_jax.run import warnings

LM, _ = plain_model.make()
EMBEDDING = LM.params["embed"]["embedding"]
NORM = float(np.linalg.norm(np.asarray(EMBEDDING), axis=1).mean())
LABELS = (("0", "bad"), ("1", "good"), ("2", "so-so"))


def rows(norm):
    """Vectors of this mean norm, each of another length and direction."""
    found = np.random.default_rng(0).normal(size=(7, SPEC.width))
    return jnp.asarray(found * norm / np.linalg.norm(found, axis=1).mean(), jnp.float32)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int8])
@pytest.mark.parametrize(
    ("times", "turn"),
    [(3.1, "lower"), (1 / 3.1, "raise"), (0.0, "raise"), (2.9, ""), (1 / 2.9, "")],
)
def test_a_prompt_far_from_the_embeddings_gives_a_warning_with_both_norms(times, turn, dtype):
    table = quantize({"e": np.array(EMBEDDING)}, ["e"])["e"]
    table = table if dtype == jnp.int8 else EMBEDDING.astype(dtype)
    found = warnings.prompt_norm(rows(times * NORM), table)
    assert bool(found) == bool(turn)
    if turn:
        assert (
            f"norm of {times * NORM:.2g} on average" in found and f"embeddings {NORM:.2g}" in found
        )
        assert f"{turn} learning_rate" in found


@pytest.mark.parametrize(
    ("last", "warned"),
    [([2.0, 1.0], True), ([2.0, 3.0], True), ([1.49, 1.48], False), ([float("nan"), 1], False)],
)
def test_a_loss_that_does_not_fall_gives_a_warning(last, warned):
    found = warnings.loss_not_moving([1.0, 2.0], last, 70)
    assert bool(found) == warned
    if warned:
        assert "after 70 steps" in found and f"from 1.500 to {np.mean(last):.3f}" in found


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("early_stopping=2 evaluate_every=10", ""),
        ("early_stopping=3 evaluate_every=10", "early_stopping is 3 and the run has 4 validations"),
        ("schedule.warmup_steps=39", ""),
        ("schedule.warmup_steps=40", "schedule.warmup_steps is 40 and the run has 40 steps"),
        ("schedule.warmup_steps=99 schedule.name=constant", "the rate never reaches learning_rate"),
        ("optimizer.name=adafactor learning_rate=0.3", ""),
        ("task.target={a} best_by=accuracy", "best_by is 'accuracy' and a target has none, so"),
        ("learning_rate=1e10", "learning_rate is 1e+10: above 1"),
    ],
)
def test_a_setting_that_cannot_act_gives_a_warning(words, part):
    typed = [f"--config.{word}" for word in ("steps=40", *words.split())]
    found = warnings.odd_settings(configs.load(None, typed))
    assert (part in found[0]) if part else found == []


@pytest.mark.parametrize(
    ("chosen", "answers", "warned"),
    [
        ([2] * 20, [0, 1] * 10, "100% of the validation examples are answered '2', .* for 0%"),
        ([2] * 18 + [0, 1], [0, 1] * 10, ""),
        # As many as there are.
        ([2] * 20, [2] * 20, ""),
        ([2] * 20, [2] * 19 + [0], ""),
        ([2] * 20, [2] * 18 + [0, 0], "right for 90%"),
    ],
)
def test_nearly_the_same_answer_to_all_examples_gives_a_warning(chosen, answers, warned):
    found = warnings.one_answer(np.array(chosen), np.array(answers), LABELS)
    assert bool(found) == bool(warned)
    if warned:
        assert re.search(warned, found)


def test_a_task_without_labels_gives_no_warning():
    nothing = np.zeros(5, int)
    assert warnings.one_answer(nothing, nothing, ()) == ""
    assert warnings.same_beginning((), (nothing,)) == []


def tails(*ids):
    return [np.array(each, np.int32) for each in ids]


def test_a_word_that_another_begins_with():
    [found] = warnings.same_beginning(LABELS, tails([4, 5], [4, 5, 6], [7]))
    assert "never be ranked above it: 'bad' in 'good';" in found
    [found] = warnings.same_beginning(LABELS, tails([7, 1], [8], [7]))
    assert "'so-so' in 'bad'" in found


def test_words_with_the_same_first_token():
    [found] = warnings.same_beginning(LABELS, tails([4, 5], [4, 6], [7]))
    assert "begin with the same token" in found and ": 'bad' and 'good';" in found


def test_both_warnings_are_given_and_a_long_list_is_cut():
    whole, first = warnings.same_beginning(LABELS, tails([4, 5], [4, 6], [4]))
    assert "'so-so' in 'bad', 'so-so' in 'good';" in whole and "'bad' and 'good'" in first
    many = tuple((str(number), f"w{number}") for number in range(4))
    [found] = warnings.same_beginning(many, tails(*([9, number] for number in range(4))))
    assert "'w0' and 'w1', 'w0' and 'w2', 'w0' and 'w3' and 3 more;" in found


def test_words_that_differ_in_the_first_token_give_no_warning():
    assert warnings.same_beginning(LABELS, tails([4, 5], [5, 4], [6, 4, 5])) == []


def test_records_that_are_trained_on_are_counted_by_their_input():
    rows = [{"text": text, "label": label} for text, label in zip("aabc", "xyzz", strict=True)]
    found = warnings.trained_on(rows, [{"text": "a", "label": "z"}, rows[3]], ["text"], "test[:4]")
    assert found.startswith("3 of 4 records of test[:4] are trained on too")
    assert warnings.trained_on(rows, [rows[3]], ["text", "label"], "test").startswith("1 of 4")
    assert warnings.trained_on(rows, [{"text": "d"}], ["text"], "test") == ""


def test_updates_with_more_examples_than_there_are_give_a_warning():
    assert warnings.repeated(8, 8) == ""
    assert "batch_size is 9 and there are 8 training examples" in warnings.repeated(9, 8)


def test_a_start_that_is_ignored_or_does_not_fit_gives_a_warning():
    def said(**settings):
        settings = ConfigDict({"init_file": "", "init_text": "", **settings})
        return warnings.unread_init(settings, LM.tokenizer, LABELS)

    size = len(LM.tokenizer.encode("two words")[0])
    given = {"init": "text", "init_text": "two words"}
    assert said(**given, num_virtual_tokens=size) == ""
    assert f"has {size} tokens and is cut to the 1 virtual" in said(**given, num_virtual_tokens=1)
    assert "is repeated to the 99 virtual tokens" in said(**given, num_virtual_tokens=99)
    assert said(init="vocabulary", num_virtual_tokens=1) == ""
    assert said(init="labels", num_virtual_tokens=len(LABELS)) == ""
    few = said(init="labels", num_virtual_tokens=len(LABELS) - 1)
    assert few == f"1 of the {len(LABELS)} labels have no virtual token"
    assert said(init="vocabulary", init_text="two words", num_virtual_tokens=1) == (
        "method.init_text is ignored, as method.init is 'vocabulary': set method.init to 'text' to"
        " use it"
    )
    ones_own = ConfigDict({"init": "text", "words": 3})  # other keys than the methods here
    assert warnings.unread_init(ones_own, LM.tokenizer, LABELS) == ""
    unread = said(
        init="text", init_text="two words", init_file="run/artifact", num_virtual_tokens=2
    )
    assert unread.startswith("method.init_file is ignored, as method.init is 'text': ")


def test_a_template_that_differs_from_the_artifacts_gives_a_warning():
    manifest = {"template": "{soft}{text}:", "labels": [], "max_length": 9}
    assert warnings.other_task(manifest, "{soft}{text}:", (), 9) == []
    [found] = warnings.other_task(manifest, "{soft}\n" + "x" * 999, (), 9)
    assert found.startswith("the artifact's own template is read, '{soft}{text}:', and not")
    assert r"{soft}\nxxx" in found and len(found) < 200
    [found] = warnings.other_task(manifest, "{soft}{text}:", (), 8)
    assert found == "the artifact's own max_length is read, 9, and not the config's, 8"


def test_another_number_of_devices_gives_a_warning():
    assert warnings.other_devices(8, 8) == ""
    found = warnings.other_devices(8, 1)
    assert "devices: 8" in found and "devices: 1;" in found and "bit for bit" in found


@pytest.mark.parametrize(
    ("values", "named"),
    [
        (["World", "WORLD", "Sports"], "'World' and 'WORLD'"),
        (["caf\u00e9", "bar", "cafe\u0301"], "'caf\u00e9' and 'cafe\u0301'"),
        (["very  good", "bad", "very good"], "'very  good' and 'very good'"),
        (["1", "1.0", "2"], "'1' and '1.0'"),
        (["\u0398a", "2", "\u03b8A", "2.0"], "'\u0398a' and '\u03b8A', '2' and '2.0'"),
        (["1", "11", "one", "nan", "NAN2"], ""),
        ([], ""),
    ],
)
def test_labels_that_look_alike_are_named(values, named):
    found = warnings.look_alike([(value, "word") for value in values])
    assert bool(found) == bool(named) and named in found


def test_empty_texts_are_counted_by_field():
    records = [{"a": "x", "b": " "}, {"a": "", "b": "\n"}, {"a": "y", "b": "z"}]
    assert warnings.empty_texts(records, ["a"], "train[:3]") == (
        "train[:3] has 3 records, and empty texts: 1 of 'a'; remove or complete these"
    )
    assert "empty texts: 1 of 'a' and 2 of 'b'" in warnings.empty_texts(records, ["a", "b"], "s")
    assert warnings.empty_texts(records[2:], ["a", "b"], "s") == ""
