"""Metrics against plain loops and the libraries' own corpus scores; intervals against a plain
bootstrap."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu.metrics import BLEU

from prompt_tuning_jax import metrics
from prompt_tuning_jax.metrics import LABEL_METRICS

COUNTED = [name for name in LABEL_METRICS if name != "calibration_error"]
VALUES = ["bad", "fine", "good", "never"]
TEXTS = [
    ("The cat sat on the mat .", ["A cat sat on the mat .", "There is a cat ."]),
    ("the cat", ["The cat!"]),
    ("", ["something"]),
    ("no word in common here", ["entirely different words"]),
    ("a quick brown fox jumps over dogs", ["the quick brown fox jumped over a lazy dog"] * 2),
    ("the cat sat on the mat , twice", ["the cat sat", "the cat sat on the mat , twice over"]),
]
PREDICTIONS, REFERENCES = (list(part) for part in zip(*TEXTS, strict=True))
PAIRS = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=30
)  # label 3 never comes


def scores(predictions):
    """Scores by which these labels are predicted."""
    return np.eye(len(VALUES))[np.asarray(predictions)]


def plain(predictions, answers):
    """Every metric of labels by counting."""
    pairs = list(zip(predictions, answers, strict=True))
    f1s, recalls = [], {}
    for label, value in enumerate(VALUES):
        right = sum(p == a == label for p, a in pairs)
        predicted, actual = predictions.count(label), answers.count(label)
        recalls[value] = right / actual if actual else None
        if predicted + actual:
            f1s.append(2 * right / (predicted + actual))
    # The correlation coefficient of one-hot vectors, by its definition.
    one = np.eye(len(VALUES))[predictions], np.eye(len(VALUES))[answers]
    spread = [part - part.mean(axis=0) for part in one]
    variances = (spread[0] ** 2).sum() * (spread[1] ** 2).sum()
    return {
        "accuracy": sum(p == a for p, a in pairs) / len(pairs),
        "class_accuracy": recalls,
        "macro_f1": sum(f1s) / len(f1s),
        "matthews": (spread[0] * spread[1]).sum() / variances**0.5 if variances > 1e-9 else 0.0,
    }


@given(PAIRS)
def test_metrics_of_labels_are_what_counting_gives(pairs):
    predictions, answers = (list(part) for part in zip(*pairs, strict=True))
    found = metrics.label_metrics(scores(predictions), np.array(answers), VALUES, COUNTED)
    intervals = found.pop("intervals")
    wanted = plain(predictions, answers)
    assert found.keys() == intervals.keys() == wanted.keys()
    assert found.pop("class_accuracy") == pytest.approx(wanted.pop("class_accuracy"))
    assert found == pytest.approx(wanted)
    assert intervals["class_accuracy"]["never"] is None
    for name in found:
        low, high = intervals[name]
        assert type(low) is type(high) is float and low <= high


def test_only_the_named_metrics_are_computed():
    found = metrics.label_metrics(scores([0, 1]), np.array([0, 0]), VALUES, ["macro_f1"])
    assert found.keys() == {"macro_f1", "intervals"}
    assert metrics.text_metrics(["x"], [["x"]], ["token_f1"]) == {
        "token_f1": 1.0,
        "intervals": {"token_f1": [1.0, 1.0]},
    }


def test_intervals_of_labels_are_what_resampled_examples_give():
    rng = np.random.default_rng(5)
    answers = rng.integers(0, 3, 200)
    predictions = np.where(rng.random(200) < 0.7, answers, rng.integers(0, 3, 200))
    found = metrics.label_metrics(scores(predictions), answers, VALUES, COUNTED)["intervals"]
    resampled = []
    for _ in range(1000):
        chosen = rng.integers(0, 200, 200)
        resampled.append(plain(predictions[chosen].tolist(), answers[chosen].tolist()))
    for name in ("accuracy", "macro_f1", "matthews"):
        wanted = np.percentile([each[name] for each in resampled], [2.5, 97.5])
        np.testing.assert_allclose(found[name], wanted, atol=0.012)
    wanted = np.percentile([each["class_accuracy"]["bad"] for each in resampled], [2.5, 97.5])
    np.testing.assert_allclose(found["class_accuracy"]["bad"], wanted, atol=0.02)


def test_intervals_of_texts_are_what_resampled_examples_give():
    rng = np.random.default_rng(5)
    words = "the cat sat on a mat and saw another dog run home".split()
    references = [[" ".join(rng.choice(words, rng.integers(4, 12)))] for _ in range(80)]
    predictions = [
        " ".join(word for word in text.split() if rng.random() < 0.9) for [text] in references
    ]
    found = metrics.text_metrics(predictions, references, ["token_f1", "bleu"])["intervals"]
    scorer, bleus = BLEU(), []
    for _ in range(400):
        chosen = rng.integers(0, 80, 80)
        texts = [predictions[i] for i in chosen]
        right = [references[i][0] for i in chosen]
        bleus.append(scorer.corpus_score(texts, [right]).score)
    wanted = np.percentile(bleus, [2.5, 97.5])
    np.testing.assert_allclose(found["bleu"], wanted, atol=1.0)
    f1s = np.array(metrics.token_f1s(list(zip(predictions, references, strict=True)), ()))
    means = [f1s[rng.integers(0, 80, 80)].mean() for _ in range(2000)]
    np.testing.assert_allclose(found["token_f1"], np.percentile(means, [2.5, 97.5]), atol=0.005)


def test_many_examples_are_resampled_in_parts(monkeypatch):
    whole = metrics.text_metrics(PREDICTIONS, REFERENCES, ["token_f1", "bleu"])
    monkeypatch.setattr(metrics, "_AT_ONCE", 7 * len(TEXTS))
    assert metrics.text_metrics(PREDICTIONS, REFERENCES, ["token_f1", "bleu"]) == whole


def test_bleu_is_that_of_sacrebleu_for_any_number_of_references():
    most = max(map(len, REFERENCES))
    streams = [
        [given[place] if place < len(given) else None for given in REFERENCES]
        for place in range(most)
    ]
    wanted = BLEU().corpus_score(PREDICTIONS, streams).score
    found = metrics.text_metrics(PREDICTIONS, REFERENCES, ["bleu"])
    assert found["bleu"] == pytest.approx(wanted) and 0 < wanted < 100


def longest_common(one, other):
    table = np.zeros((len(one) + 1, len(other) + 1), int)
    for i, first in enumerate(one):
        for j, second in enumerate(other):
            longer = max(table[i, j + 1], table[i + 1, j])
            table[i + 1, j + 1] = table[i, j] + 1 if first == second else longer
    return table[-1, -1]


def test_rouge_l_is_the_f_measure_of_the_longest_common_words():
    wanted = []
    for text, references in TEXTS:
        best = 0.0
        for reference in references:
            one, other = (
                "".join(c if c.isalnum() else " " for c in each.lower()).split()
                for each in (text, reference)
            )
            if one and other:
                best = max(best, 2 * longest_common(one, other) / (len(one) + len(other)))
        wanted.append(best)
    found = metrics.text_metrics(PREDICTIONS, REFERENCES, ["rouge_l"])
    assert found["rouge_l"] == pytest.approx(np.mean(wanted)) and len(set(wanted)) > 3


@pytest.mark.parametrize(
    ("text", "references", "plain", "squad"),
    [
        ("The cat!", ["a cat"], (0, 0), (1, 1)),
        ("A", ["the"], (0, 0), (1, 1)),
        ("1", ["-1"], (0, 0), (1, 1)),
        ("a cat.", ["a cat"], (0, 0.5), (1, 1)),
        ("The \n Cat", ["the cat"], (1, 1), (1, 1)),
        ("STRASSE", ["straße"], (1, 1), (0, 0)),
        ("cat", ["dog", "cat "], (1, 1), (1, 1)),
        ("big cat", ["cat"], (0, 2 / 3), (0, 2 / 3)),
        ("cat cat", ["cat"], (0, 2 / 3), (0, 2 / 3)),
        ("cat", ["dog"], (0, 0), (0, 0)),
        ("", ["the"], (0, 0), (1, 1)),
        ("", ["cat"], (0, 0), (0, 0)),
    ],
)
def test_exact_match_and_f1_are_plain_or_squads(text, references, plain, squad):
    names = ["exact_match", "token_f1", "squad_exact_match", "squad_f1"]
    found = metrics.text_metrics([text], [references], names)
    assert [found[name] for name in names] == pytest.approx([*plain, *squad])


SCRIPTS = {
    "Быстрая бурая лиса прыгает.": "intl",
    "ฉันรักภาษาไทยมาก": "char",
    "我爱北京天安门": "char",
    "これはペンです": "char",
    "ខ្ញុំស្រឡាញ់ភាសាខ្មែរ": "char",
    "मुझे हिन्दी पसंद है": "intl",
    "We met her in 北京 today": "intl",
    "The β-carotene was déjà vu": "13a",
    "3 + 4 = 7": "13a",
    "?!": "13a",
}


@pytest.mark.parametrize("text", SCRIPTS)
def test_the_same_text_in_any_script_is_a_full_match(text):
    found = metrics.text_metrics([text], [[text]], ["bleu", "rouge_l"])
    assert found["tokenizer"] == SCRIPTS[text]
    if text != "?!":  # without a word there is nothing to find
        assert found["rouge_l"] == pytest.approx(1) and found["bleu"] == pytest.approx(100)


def test_rouge_l_of_other_scripts_by_hand():
    pairs = [
        ("我爱北京", "我爱上海", 1 / 2),  # two of four characters
        ("Мы пошли домой.", "мы ПОШЛИ в парк", 4 / 7),  # two of three and of four words
        ("We met in 北京", "We met in 上海", 3 / 5),  # rouge-score would see no difference
        ("हिन्दी है", "हिन्दी नहीं", 1 / 2),  # vowel signs are parts of words
        ("é", "e\u0301", 1),
    ]
    for text, reference, wanted in pairs:
        found = metrics.text_metrics([text], [[reference]], ["rouge_l"])
        assert found["rouge_l"] == pytest.approx(wanted), text


def test_the_tokenizer_can_be_chosen_and_each_example_has_its_own():
    chinese, english = "我爱北京天安门广场", "I love the square in Beijing"
    for name, wanted in (("13a", 0), ("zh", 100), ("char", 100)):
        found = metrics.text_metrics([chinese], [[chinese]], ["bleu"], name)
        assert found["tokenizer"] == name
        assert found["bleu"] == pytest.approx(wanted)
    found = metrics.text_metrics(
        [chinese, english], [[chinese], [english]], ["rouge_l", "bleu", "token_f1"]
    )
    assert found["tokenizer"] == "13a and char"
    assert found["bleu"] == pytest.approx(100) and found["rouge_l"] == 1
