from types import SimpleNamespace

import numpy as np
import pytest

from prompt_tuning_jax.data.task import (
    Source,
    Task,
    dropped,
    examples,
    make,
    parse_labels,
    records,
)
from prompt_tuning_jax.errors import UserError

ROWS = [{"text": f"line {n}", "label": "bad" if n % 3 else "good"} for n in range(30)]
TASK = Task(
    name="reviews",
    template="{soft}Review: {text}\nAnswer:",
    labels=(("bad", "terrible"), ("good", "great")),
    metrics=("accuracy",),
    fields=("text",),
    load=lambda: Source({"train": ROWS, "test": ROWS[:7]}, {}),
)


def config(**changes):
    defaults = {"name": "bbc_news", "split_seed": 0, "template": "{text}", "labels": ("a", "b")}
    defaults |= {"target": "", "metrics": ()}
    return SimpleNamespace(**(defaults | changes))


@pytest.mark.parametrize(
    ("split", "start", "stop"),
    [
        ("train", 0, 30),
        ("train[:8]", 0, 8),
        ("train[10:20]", 10, 20),
        ("train[25:]", 25, 30),
        ("train[-4:]", 26, 30),
        ("train[:-4]", 0, 26),
        ("train[:50%]", 0, 15),
        ("train[50%:]", 15, 30),
        ("train[-10%:]", 27, 30),
        ("train[:33%]", 0, 10),
        ("train[33%:66%]", 10, 20),
        ("test[:]", 0, 7),
    ],
)
def test_a_split_is_a_slice(split, start, stop):
    assert records(TASK, split) == ROWS[start:stop]


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("trian", r"'trian' of task reviews is unknown, .* train, test \(did you mean 'train'\?\)"),
        ("train[:0]", "no part of its 30 records"),
        ("train[:31]", "no part of its 30 records"),
        ("train[20:10]", "no part of its 30 records"),
        ("train[-31:]", "no part of its 30 records"),
        ("train[:101%]", "is none: expected"),
        ("train[:x]", "is none: expected"),
        ("train[::2]", "is none: expected"),
        ("train[5]", "is none: expected"),
        ("", "is none: expected"),
    ],
)
def test_a_split_that_is_none_is_refused(split, message):
    with pytest.raises(UserError, match=message):
        records(TASK, split)


def test_a_label_in_the_data_that_the_task_does_not_list_is_refused():
    task = TASK._replace(labels=(("bad", "bad"), ("goood", "good")))
    with pytest.raises(
        UserError, match=r"record 0 of split 'train' .* label 'good', .*\(did you mean 'goood'\?\)"
    ):
        records(task, "train")


def test_labels_are_values_with_the_words_that_stand_for_them():
    assert parse_labels(("a", " b = bee ", "c=d=e")) == (("a", "a"), ("b", "bee"), ("c", "d=e"))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (("a",), "at least two labels"),
        (("a", ""), r"task.labels\[1\] is ''"),
        (("a", "b="), r"task.labels\[1\] is 'b='"),
        (("a", "=b"), r"task.labels\[1\] is '=b'"),
        (("a", "b", "a=c"), r"task.labels\[2\] is 'a=c', but task.labels\[0\] has the value 'a'"),
        (("a", "b", "c=b"), r"task.labels\[2\] is 'c=b', but task.labels\[1\] has the word 'b'"),
    ],
)
def test_labels_without_their_own_value_and_word_are_refused(labels, message):
    with pytest.raises(UserError, match=message):
        parse_labels(labels)


def test_make_refuses_unknown_names_at_once():
    with pytest.raises(UserError, match=r"'bbc-news', expected .*\(did you mean 'bbc_news'\?\)"):
        make(config(name="bbc-news"))
    with pytest.raises(
        UserError, match=r"position 7: unknown field \{txet\}, .*\(did you mean 'text'\?\)"
    ):
        make(config(template="{soft}{txet}"))
    with pytest.raises(UserError, match=r"unknown field \{label\}"):
        make(config(template="{text}{label}"))


def test_examples_have_the_words_as_answers_and_the_record_in_errors(tokenizer):
    arguments = {"num_virtual_tokens": 2, "add_bos": False}
    encoded = examples(TASK, ROWS[:3], tokenizer, max_length=99, **arguments)
    assert [example.answer for example in encoded] == [1, 0, 0]
    words = [tokenizer.encode(" terrible")[0], tokenizer.encode(" great")[0]]
    assert [tail.tolist() for tail in encoded[0].tails] == words
    assert dropped(encoded) == (0, 0)

    unknown = examples(TASK, [{"text": "x"}], tokenizer, max_length=99, **arguments)
    assert unknown[0].answer == -1
    other = examples(TASK, ROWS[:1], tokenizer, max_length=99, template="{soft}{text}", **arguments)
    assert len(other[0].trunk) < len(encoded[0].trunk)

    with pytest.raises(UserError, match=r"position 13: unknown field \{label\}"):
        examples(TASK, ROWS, tokenizer, max_length=99, template="{soft}{text}{label}", **arguments)

    rows = [*ROWS[:2], {"text": "a much longer line than the others", "label": "bad"}]
    longest = max(len(example.trunk) for example in encoded) + 10
    shortened = examples(TASK, rows, tokenizer, max_length=longest, **arguments)
    assert dropped(shortened) == (1, shortened[2].dropped)
    assert shortened[2].dropped > 0
    with pytest.raises(UserError, match="record 0: the example takes"):
        examples(TASK, rows, tokenizer, max_length=5, **arguments)


def test_the_headlines_have_the_lengths_and_words_that_were_counted(smollm2, bbc_config):
    task = make(bbc_config)
    rows = [row for split in ("train", "validation", "test") for row in records(task, split)]
    encoded = examples(task, rows, smollm2, num_virtual_tokens=16, add_bos=False, max_length=2048)
    lengths = np.array([len(example.trunk) - 16 for example in encoded])
    assert len(lengths) == 2096
    assert lengths.mean().round(1) == 13.1
    assert lengths.max() == 24
    words = {tuple(tail.item() for tail in example.tails) for example in encoded}
    assert words == {(1861, 11154, 5993, 5288, 1835)}
    for row, example in zip(rows, encoded, strict=True):
        text = smollm2.decode([i for i in example.trunk.tolist() if i >= 0])
        assert text == f"Headline: {row['text']}\nTopic:"
