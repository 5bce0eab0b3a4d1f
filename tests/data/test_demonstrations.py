"""Demonstrations: their choice, how many fit, and their text and tokens."""

import collections
import functools
import re
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompt_tuning_jax import score as scoring
from prompt_tuning_jax.data.demonstrations import choose_demonstrations
from prompt_tuning_jax.data.encode import encode_examples
from prompt_tuning_jax.data.example import encode_example
from prompt_tuning_jax.data.task import Source, Task
from prompt_tuning_jax.data.template import parse, with_demonstrations
from prompt_tuning_jax.errors import UserError
from prompt_tuning_jax.models.files.tokenizer import Facts, Tokenizer

ROWS = [{"text": f"line {n}", "label": "aaabbc"[n % 6]} for n in range(60)]


def choose(number, seed=0, balanced=True, rows=ROWS):
    return choose_demonstrations(rows, number, balanced=balanced, seed=seed)


@given(st.integers(0, 30), st.integers(0, 5), st.booleans(), st.randoms())
def test_a_choice_depends_on_the_seed_and_the_records_alone(number, seed, balanced, shuffle):
    chosen = choose(number, seed, balanced)
    assert len(chosen) == number and all(row in ROWS for row in chosen)
    assert len({row["text"] for row in chosen}) == number
    again = ROWS.copy()
    shuffle.shuffle(again)
    placed = [{**row, "(place)": f"line {n}"} for n, row in enumerate(again)]
    found = choose(number, seed, balanced, placed)
    assert [{"text": row["text"], "label": row["label"]} for row in found] == chosen
    # Fewer of them are the first of these, so whatever fits is a choice of its own.
    assert choose(number // 2, seed, balanced) == chosen[: number // 2]


def test_a_balanced_choice_takes_the_labels_in_turn_and_another_does_not():
    for seed in range(20):
        chosen = choose(29, seed)
        for number in range(1, 30):
            counts = collections.Counter(row["label"] for row in chosen[:number])
            assert max(counts.values()) - min(counts[label] for label in "abc") <= 1
    orders = collections.Counter(
        "".join(r["label"] for r in choose(3, seed)) for seed in range(200)
    )
    assert len(orders) == 6 and max(orders.values()) < 2 * min(orders.values()), orders
    drawn = [choose(6, seed, balanced=False) for seed in range(50)]
    counts = collections.Counter(row["label"] for rows in drawn for row in rows)
    assert counts["a"] > counts["b"] > counts["c"] > 0


def test_a_label_that_has_no_more_records_is_passed_over():
    counts = collections.Counter(row["label"] for row in choose(40))
    assert counts == {"a": 15, "b": 15, "c": 10}
    with pytest.raises(
        UserError, match=r"number is 61 and 60 training records can be shown: give fewer"
    ):
        choose(61)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=9), st.integers(1, 9), st.randoms())
def test_as_many_fit_as_leave_every_record_whole(lengths, number, draw):
    """Compared with counting one by one. Text in front may cost a record a token more or less."""
    sizes = [draw.randint(1, 9) for _ in range(number)]
    slack = [draw.randint(0, 1) for _ in lengths]
    most = draw.randint(max(lengths) + 1, 80)

    def length(row, shown):
        return lengths[row] + sum(sizes[:shown]) + (slack[row] if shown else 0)

    def encode(lm, task, rows, given, max_length, shown, room):
        trunks = [np.zeros(length(row["n"], len(shown)) - 1, np.int32) for row in rows]
        return [SimpleNamespace(trunk=trunk, tails=(np.zeros(2), [0])) for trunk in trunks]

    rows, said = [{"n": n, "(place)": f"file, line {n}"} for n in range(len(lengths))], []
    fits = [n for n in range(1, number + 1) if all(length(row["n"], n) <= most for row in rows)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "encode_for", encode)
        fit = functools.partial(scoring.fitting, None, None, rows, range(number), said.append)
        if not fits:
            wanted = rf"none of {number} demonstrations fits in front of file, line \d+, .*"
            wanted += r": give config\.task\.max_length .*\(config\.a\.b\) out"
            with pytest.raises(UserError, match=wanted):
                fit(room=most, key="a.b")
            return
        assert len(fit(room=most)) == max(fits)
    used = f"warning: {max(fits)} of {number} demonstrations are used: with more"
    assert [line[: len(used)] for line in said] == [used] * (max(fits) < number)


def by_hand(parts, tokenizer):
    """Ids of texts and of special tokens, each text in one piece."""
    ids = []
    for part in parts:
        special = tokenizer.specials.get(part)
        ids += tokenizer.encode(part)[0] if special is None else [special]
    return ids


TRICKY = ["<|im_end|>", "{soft}", "{text}", "{{", "}", "\\n", "\n", " ", "naïve 日本", "a", ""]


@given(st.lists(st.sampled_from(TRICKY), min_size=4, max_size=4))
def test_the_text_of_a_record_is_only_text(tokenizer, texts):
    template = parse("{soft}Q: {text}\nA:", tokenizer.specials)
    shown = [
        ({"text": text}, answer) for text, answer in zip(texts, ("yes", "no", "yes"), strict=False)
    ]
    example = encode_example(
        with_demonstrations(template, shown),
        {"text": texts[3]},
        ["yes", "no"],
        tokenizer,
        num_virtual_tokens=0,
        add_bos=False,
        max_length=999,
    )
    front = "".join(f"Q: {text['text']}\nA: {answer}\n\n" for text, answer in shown)
    for tail, answer in zip(example.tails, ("yes", "no"), strict=True):
        whole = by_hand([f"{front}Q: {texts[3]}\nA: {answer}"], tokenizer)
        assert [*example.trunk, *tail] == whole
    assert example.constant >= len(tokenizer.encode(front)[0]), "they are not shared"


# Special tokens beside <s> (BOS) and </s>, which token is EOS, the template, how each demonstration
# and the question begin, and what follows the answers.
CHATS = {
    "BOS": ((), "</s>", "<s>Q: {text}\nA:", "Q: {}\nA:", "\n\n"),
    "a slot before BOS": ((), "</s>", "{soft}<s>Q: {text}\nA:", "Q: {}\nA:", "\n\n"),
    "ChatML": (
        ("<|im_start|>", "<|im_end|>"),
        "<|im_end|>",
        "<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
        "<|im_end|>\n",
    ),
    "Llama 3": (
        ("<|h|>", "<|/h|>", "<|eot|>"),
        "<|eot|>",
        "<s><|h|>user<|/h|>\n\n{text}<|eot|><|h|>assistant<|/h|>\n\n",
        "<|h|>user<|/h|>\n\n{}<|eot|><|h|>assistant<|/h|>\n\n",
        "<|eot|>",
    ),
    "Gemma": (
        ("<turn>", "<end>"),
        "</s>",
        "<s><turn>user\n{text}<end>\n<turn>model\n",
        "<turn>user\n{}<end>\n<turn>model\n",
        "<end>\n",
    ),
    "Zephyr": ((), "</s>", "user\n{text}</s>\nassistant\n", "user\n{}</s>\nassistant\n", "</s>\n"),
    "another end than EOS": (
        ("<eot>",),
        "</s>",
        "user\n{text}<eot>\nbot\n",
        "user\n{}<eot>\nbot\n",
        "<eot>\n",
    ),
    "Mistral": (
        ("[INST]", "[/INST]"),
        "</s>",
        "<s>[INST] {text}[/INST]",
        "[INST] {}[/INST]",
        "</s>",
    ),
    "BOS that begins turns": (
        (),
        "</s>",
        "<s>user {text}</s>\n<s>bot ",
        "<s>user {}</s>\n<s>bot ",
        "</s>\n",
    ),
    "no EOS": (("<x>",), None, "{text}<x>", "{}<x>", "\n\n"),
}


@pytest.mark.parametrize("add_bos", [False, True])
@pytest.mark.parametrize("name", CHATS)
def test_bos_comes_once_and_a_turns_end_follows_each_answer(name, add_bos):
    more, eos, template, asked, end = CHATS[name]
    tokens = ["<s>", "</s>", *more, *map(chr, range(32, 127)), "\n"]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    vocabulary = {
        "added_tokens": [
            {"id": n, "content": token, "special": True, **flags}
            for n, token in enumerate(tokens[: 2 + len(more)])
        ],
        "model": {"type": "BPE", "vocab": {t: n for n, t in enumerate(tokens)}, "merges": []},
    }
    chatting = Tokenizer(vocabulary, Facts("<s>", eos, None, False, None, (2,) * ("<eot>" in more)))
    words = (("a", "yes"), ("b", "no"))
    task = Task("chat", template, words, (), ("text",), lambda: Source({}))
    [example] = encode_examples(
        task,
        [{"text": "how"}],
        chatting,
        num_virtual_tokens=0,
        add_bos=add_bos,
        max_length=999,
        demonstrations=[{"text": "</s>", "label": "b"}, {"text": "", "label": "a"}],
    )
    space = "" if asked[-1].isspace() else " "
    # The record's own markup is text, a character a token.
    expected = f"{asked.format('QUOTED')}{space}no{end}{asked.format('')}{space}yes{end}"
    parts = re.split(f"({'|'.join(map(re.escape, tokens[: 2 + len(more)]))}|QUOTED)", expected)
    parts += re.split(f"({'|'.join(map(re.escape, tokens[: 2 + len(more)]))})", asked.format("how"))
    spelled = [p for part in parts for p in spell(part, tokens)]
    front = ["<s>"] if template.startswith(("<s>", "{soft}<s>")) or add_bos else []
    front = [] if parts[:2] == ["", "<s>"] else front
    assert [tokens[number] for number in example.trunk] == front + spelled


def spell(part, tokens):
    """A special token, or the characters of a text."""
    if part in tokens:
        return [part]
    return list("</s>" if part == "QUOTED" else part)


def test_a_demonstration_without_a_field_is_refused():
    with pytest.raises(UserError, match=r"position 4: the data has no field 'text'"):
        with_demonstrations(parse("Q: {text}"), [({"txt": "x"}, "yes")])
