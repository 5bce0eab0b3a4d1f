"""Tasks: their splits, labels and templates, and their records as examples."""

from types import SimpleNamespace

import pytest

from prompt_tuning_jax.data.encode import count_shortened, encode_examples, group_by_input
from prompt_tuning_jax.data.records import PLACE
from prompt_tuning_jax.data.task import (
    Source,
    Task,
    make_task,
    parse_labels,
    select_records,
    template_fields,
    training_records,
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
    defaults |= {"target": "", "metrics": (), "metrics_tokenizer": "char", "as_chat": False}
    return SimpleNamespace(**(defaults | changes))


@pytest.mark.parametrize(
    ("split", "start", "stop"),
    [
        ("train", 0, 30),
        ("train[:8]", 0, 8),
        ("train[10:20]", 10, 20),
        ("train[-4:]", 26, 30),
        ("train[:-4]", 0, 26),
        ("train[:50%]", 0, 15),
        ("train[50%:]", 15, 30),
        ("train[-10%:]", 27, 30),
        ("train[33%:66%]", 10, 20),
        ("test[:]", 0, 7),
    ],
)
def test_a_split_is_a_slice(split, start, stop):
    assert select_records(TASK, split) == ROWS[start:stop]


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("trian", r"'trian' of task reviews is unknown, .* train, test \(did you mean 'train'\?\)"),
        ("train[:0]", "not a part of its 30 records"),
        ("train[:31]", "not a part of its 30 records"),
        ("train[20:10]", "not a part of its 30 records"),
        ("train[-31:]", "not a part of its 30 records"),
        ("train[:101%]", "is not a valid split: expected"),
        ("train[::2]", "is not a valid split: expected"),
        ("", "is not a valid split: expected"),
    ],
)
def test_an_invalid_split_is_refused(split, message):
    with pytest.raises(UserError, match=message):
        select_records(TASK, split)


def test_a_label_in_the_data_that_the_task_does_not_list_is_refused():
    rows = [{"text": "a", "label": "<=50K"}]
    task = TASK._replace(labels=parse_labels(("<=50K=low", ">50K=high")))
    task = task._replace(load=lambda: Source({"train": rows}))
    with pytest.raises(
        UserError, match=r"does not list \(as '<=50K = WORD', with spaces\): expected"
    ):
        select_records(task, "train")
    task = TASK._replace(labels=(("bad", "bad"), ("goood", "good")))
    with pytest.raises(
        UserError, match=r"record 0 of split 'train' .* label 'good', .*\(did you mean 'goood'\?\)"
    ):
        select_records(task, "train")


def test_labels_are_values_with_the_words_that_stand_for_them():
    assert parse_labels(("a", " b = bee ", "c=d=e")) == (("a", "a"), ("b", "bee"), ("c", "d=e"))


@pytest.mark.parametrize(
    ("entry", "pair"),
    [
        ("<=50K = low", ("<=50K", "low")),
        ("a=b = c=d", ("a=b", "c=d")),
        ("a = b = c", ("a", "b = c")),
        ("<50K=low", ("<50K", "low")),
    ],
)
def test_a_value_with_an_equals_sign_can_have_a_word(entry, pair):
    assert parse_labels(("x", entry)) == (("x", "x"), pair)


def test_a_listed_label_is_found_in_its_other_unicode_form():
    one, other = "caf\u00e9", "cafe\u0301"
    for listed, held in ((one, other), (other, one)):
        rows = [{"text": "a", "label": held}, {"text": "b", "label": "bar"}]
        task = TASK._replace(
            labels=((listed, "x"), ("bar", "y")), load=lambda rows=rows: Source({"train": rows})
        )
        assert [row["label"] for row in select_records(task, "train")] == [listed, "bar"]
    # Two that are listed in both forms are two.
    rows = [{"text": "a", "label": one}, {"text": "b", "label": other}]
    task = TASK._replace(labels=((one, "x"), (other, "y")), load=lambda: Source({"train": rows}))
    assert [row["label"] for row in select_records(task, "train")] == [one, other]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (("a", ""), r"task.labels\[1\] is ''"),
        (("a", "b="), r"task.labels\[1\] is 'b='"),
        (("a", "=b"), r"task.labels\[1\] is '=b'"),
        (("a", "b", "a=c"), r"task.labels\[2\] is 'a=c'"),
        (("a", "b", "c=b"), r"task.labels\[2\] is 'c=b'"),
    ],
)
def test_labels_without_their_own_value_and_word_are_refused(labels, message):
    with pytest.raises(UserError, match=message):
        parse_labels(labels)


def encoded(rows, tokenizer, task=TASK, **given):
    given = {"num_virtual_tokens": 2, "add_bos": False, "max_length": 99, **given}
    return encode_examples(task, rows, tokenizer, **given)


def test_examples_have_the_words_as_answers_and_the_record_in_errors(tokenizer):
    examples = encoded(ROWS[:3], tokenizer)
    assert [example.answer for example in examples] == [1, 0, 0]
    words = [tokenizer.encode(" terrible")[0], tokenizer.encode(" great")[0]]
    assert [tail.tolist() for tail in examples[0].tails] == words
    assert count_shortened(examples) == (0, 0)
    assert encoded([{"text": "x"}], tokenizer)[0].answer == -1

    other = encoded(ROWS[:1], tokenizer, TASK._replace(template="{soft}{text}"))
    assert len(other[0].trunk) < len(examples[0].trunk)
    with pytest.raises(UserError, match=r"position 13: \{label\} is the answer"):
        encoded(ROWS, tokenizer, TASK._replace(template="{soft}{text}{label}"))

    rows = [*ROWS[:2], {"text": "a much longer line than the others", "label": "bad"}]
    longest = max(len(example.trunk) for example in examples) + 10
    shortened = encoded(rows, tokenizer, max_length=longest)
    assert count_shortened(shortened) == (1, shortened[2].dropped)
    assert shortened[2].dropped > 0
    with pytest.raises(UserError, match="record 0: the example takes"):
        encoded(rows, tokenizer, max_length=5)


def test_a_template_without_slots_is_blamed_and_not_a_record(tokenizer):
    rows = [{**ROWS[0], PLACE: "ok.csv, line 195"}]
    with pytest.raises(UserError, match=r"^template '\{text\}:' has no slot for the 2 virtual"):
        encoded(rows, tokenizer, TASK._replace(template="{text}:"))


WRITING = Task(
    name="summaries",
    template="{soft}{text} ({kind})\nSummary:",
    labels=(),
    metrics=("bleu",),
    fields=(),
    load=lambda: Source({}),
    target="{short}, {tone}",
)
STORIES = [
    {"text": "long one", "kind": "a", "short": " few words", "tone": "calm\n"},
    {"text": "long two", "kind": "a", "short": "more", "tone": "glad"},
    {"text": "long one", "kind": "a", "short": "others", "tone": "sad"},
    {"text": "long one", "kind": "b", "short": "<|im_end|>", "tone": "{soft}"},
]


def test_a_target_is_the_only_answer_and_the_eos_token_ends_it(tokenizer):
    examples = encoded(STORIES, tokenizer, WRITING)
    texts = " few words, calm", " more, glad", " others, sad", " <|im_end|>, {soft}"
    for example, text in zip(examples, texts, strict=True):
        [tail] = example.tails
        assert example.answer == 0 and tail[-1] == tokenizer.eos_id
        assert tokenizer.eos_id not in tail[:-1].tolist()
        assert tokenizer.decode(tail[:-1].tolist()) == text
    # Without the target the model reads the tokens that it was trained on.
    question = {"text": "long one", "kind": "a"}
    for template in (WRITING.template, "{soft}{text} ({kind})\nSummary: "):
        task = WRITING._replace(template=template)
        [answered] = encoded(STORIES[:1], tokenizer, task)
        [asked] = encoded([question], tokenizer, task)
        assert asked.tails == () and asked.answer == -1
        assert asked.trunk.tolist() == answered.trunk.tolist()


def test_the_end_of_a_target_takes_its_position(tokenizer):
    [whole] = encoded(STORIES[:1], tokenizer, WRITING)
    length = len(whole.trunk) + len(whole.tails[0]) - 1
    [same] = encoded(STORIES[:1], tokenizer, WRITING, max_length=length)
    [shorter] = encoded(STORIES[:1], tokenizer, WRITING, max_length=length - 1)
    assert (same.dropped, shorter.dropped) == (0, 1)
    assert shorter.tails[0].tolist() == whole.tails[0].tolist()


def test_a_target_has_four_metrics_and_the_tokenizer_of_the_config():
    made = make_task(config(name="files", target="{short}"))
    assert made.metrics == ("exact_match", "token_f1", "bleu", "rouge_l")
    assert made.tokenizer == "char"


def test_targets_that_cannot_be_written_are_refused(tokenizer):
    empty = {**STORIES[0], "short": " ", "tone": "", PLACE: "data.csv, line 7"}
    with pytest.raises(UserError, match=r"^data.csv, line 7: the target is empty"):
        encoded([empty], tokenizer, WRITING._replace(target="{short}{tone}"))
    with pytest.raises(UserError, match="without slots and special tokens"):
        encoded(STORIES, tokenizer, WRITING._replace(target="{short}<|im_end|>"))
    with pytest.raises(UserError, match="no EOS token"):
        encoded(STORIES, SimpleNamespace(specials={}, eos_id=None), WRITING)
    with pytest.raises(UserError, match=r"^record 0: template .* no field 'kind'"):
        encoded([{"text": "x"}], tokenizer, WRITING)


def test_texts_of_the_same_input_belong_together():
    inputs, texts = group_by_input(WRITING, STORIES)
    assert inputs == [STORIES[0], STORIES[1], STORIES[3]]
    assert texts == [["few words, calm", "others, sad"], ["more, glad"], ["<|im_end|>, {soft}"]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"template": "{soft}{txet}"}, r"position 7: .* \{txet\}, .*\(did you mean 'text'\?\)"),
        ({"template": "{{text}}"}, r"has no field .*: write \{text\} with single braces where"),
        ({"template": "Review: {{ title }}"}, r": write \{title\} with single braces where"),
        ({"template": "Review:"}, r": write \{text\} where the text stands"),
        ({"template": "{text}{x.y}"}, r"position 7: \{x.y\} is not a field"),
        ({"name": "files", "template": "{text}{label}"}, r"position 7: \{label\} is the answer"),
        ({"name": "files", "target": "{label}", "template": "{label}"}, "is the answer"),
        ({"name": "files", "target": "always"}, "with at least one field"),
        ({"name": "files", "target": "{soft}{short}"}, "without slots"),
        ({"name": "files", "target": "{x.y}"}, r"position 1: \{x.y\} is not a field"),
        ({"target": "{txet}"}, r"unknown field \{txet\}"),
    ],
)
def test_a_task_that_cannot_be_learnt_is_refused_at_once(changes, message):
    with pytest.raises(UserError, match=message):
        make_task(config(**changes))


def test_a_template_may_have_a_label_that_is_not_the_answer():
    made = make_task(config(name="files", template="{text} {label}", target="{short}"))
    assert made.labels == () and made.metrics == ("exact_match", "token_f1", "bleu", "rouge_l")
    assert make_task(config(name="files")).metrics == ("accuracy",)
    assert make_task(config(name="files", metrics=("matthews",))).metrics == ("matthews",)


def test_a_written_prompt_may_have_every_field_except_the_answer():
    row = {"text": "x", "title": "y", "label": "good", PLACE: "here"}
    assert template_fields(TASK, row) == ("text",)
    assert template_fields(TASK._replace(fields=()), row) == ("text", "title")
    assert template_fields(WRITING, STORIES[0]) == ("text", "kind")


def few(rows, most, seed=0, labels=TASK.labels):
    task = TASK._replace(load=lambda: Source({"train": rows}), labels=labels)
    few = {"examples_per_class": most, "split_seed": seed, "draw_seed": 0}
    return training_records(task, SimpleNamespace(train="train", **few))


def test_few_examples_of_each_label_by_the_seed_and_their_text():
    assert few(ROWS, 0) == ROWS
    chosen = few(ROWS, 4)
    assert [row["label"] for row in chosen] == ["bad"] * 4 + ["good"] * 4
    assert all(row in ROWS for row in chosen) and len({row["text"] for row in chosen}) == 8
    assert few(ROWS[::-1], 4) == chosen
    assert few(ROWS, 3)[:3] == chosen[:3] and few(ROWS, 3)[3:] == chosen[4:7]
    others = {tuple(row["text"] for row in few(ROWS, 4, seed)) for seed in range(20)}
    assert len(others) == 20
    assert few(ROWS, 10)[10:] == sorted(
        (row for row in ROWS if row["label"] == "good"), key=few(ROWS, 10)[10:].index
    )


def test_a_label_with_too_few_examples_is_refused_with_the_counts():
    with pytest.raises(
        UserError, match=r"is 11 and split 'train' has 10 of 'good': give at most 10"
    ):
        few(ROWS, 11)
    three = (*TASK.labels, ("none", "none"))
    with pytest.raises(UserError, match=r"20 of 'bad' and 10 of 'good' and 0 of 'none': give more"):
        few(ROWS, 21, labels=three)


def test_errors_name_where_a_record_comes_from(tokenizer):
    rows = [{"text": "words " * 20, "label": "bad", PLACE: "data.csv, line 9"}]
    with pytest.raises(UserError, match=r"^data.csv, line 9: the example takes .* whole of 'text'"):
        encoded(rows, tokenizer, max_length=12)
    task = TASK._replace(load=lambda: Source({"train": [{**rows[0], "label": "x"}]}))
    with pytest.raises(UserError, match=r"^data.csv, line 9 has the label 'x'"):
        select_records(task, "train")
