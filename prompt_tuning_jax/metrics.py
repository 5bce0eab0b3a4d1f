"""Metrics by name, each with a bootstrap interval: pure functions of predictions and answers.

An interval is the middle 95 % of the metric on 2,000 resamples of the examples, drawn with
replacement by a fixed seed (the percentile bootstrap of Efron 1979; Koehn 2004 for BLEU). It shows
what other examples of the same kind would change, not what another seed of training would.
"""

import collections
import functools
import re
import string
import types
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

RESAMPLES, SEED = 2000, 0
PERCENTILES = (2.5, 97.5)
BINS = 15  # of the calibration error
TOKENIZERS = ("auto", "13a", "intl", "zh", "char")
# Thai, Lao, Myanmar, Khmer, Hiragana and Katakana, Han.
_SPACELESS = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff]"
)
_LATIN = re.compile(".*[a-z0-9]")
_AT_ONCE = 1 << 22  # numbers drawn at once, so that memory does not grow with the examples


class Counts(NamedTuple):
    """Numbers of examples for each label, int64[S, C]: of this label and predicted as it, of this
    label, predicted as it."""

    right: np.ndarray
    actual: np.ndarray
    predicted: np.ndarray


def label_metrics(
    scores: np.ndarray, answers: np.ndarray, values: Sequence[str], names: Sequence[str]
) -> dict[str, Any]:
    """Computes metrics of scored labels. The one with the highest score is predicted.

    Args:
      scores: float[N, C], log-probabilities.
      answers: int[N], places of the right labels in `values`.
      values: the C labels.
      names: of
        accuracy: share of examples that are right;
        class_accuracy: the same for each label's examples (its recall), by value, None if none;
        macro_f1: mean of F1 over the labels that were predicted or right at all;
        matthews: correlation of prediction and answer (Matthews 1975; Gorodkin 2004 for C > 2),
          0 if either is always the same;
        calibration_error: how far the predicted label's probability is from the share that is
          right, the mean over bins of equally many examples (Naeini et al. 2015; Guo et al. 2017).

    Returns:
      Each by its name, and `intervals`, [low, high] by name.
    """
    predictions, read = scores.argmax(axis=1), {"calibration_error": (scores, answers)}
    cells, counts = np.unique(answers * len(values) + predictions, return_counts=True)
    # The counts in the cells of the table are resampled, not the examples: there are few cells.
    shares, rng = counts / len(answers), np.random.default_rng(SEED)
    draws = np.concatenate([counts[None], rng.multinomial(len(answers), shares, size=RESAMPLES)])
    actual, predicted = (
        (part[:, None] == np.arange(len(values))).astype(np.int64)
        for part in np.divmod(cells, len(values))
    )
    table = Counts(draws @ (actual * predicted), draws @ actual, draws @ predicted)
    found: dict[str, Any] = {name: LABEL_METRICS[name](*read.get(name, (table,))) for name in names}
    if "class_accuracy" in found:
        found["class_accuracy"] = dict(zip(values, found["class_accuracy"].T, strict=True))
    return _with_intervals(found)


def text_metrics(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    names: Sequence[str],
    tokenizer: str = "auto",
) -> dict[str, Any]:
    """Computes metrics of written texts; of several references the best for the prediction counts.

    Args:
      predictions: N texts.
      references: at least one for each.
      names: of
        exact_match: share of texts that are a reference, up to case and white space;
        token_f1: mean F1 of the words that prediction and reference share, up to case: what white
          space divides, so "cat." is not "cat";
        squad_exact_match, squad_f1: the same without articles and punctuation (as for SQuAD,
          Rajpurkar et al. 2016), so "A" equals "the", and "1" equals "-1";
        bleu: BLEU of the corpus, 0 to 100, as sacrebleu computes it (Post 2018);
        rouge_l: mean F-measure of ROUGE-L, as rouge-score computes it without stemming (Lin 2004).
      tokenizer: for BLEU, one of sacrebleu's. ROUGE-L has rouge-score's with '13a' (a to z and
        digits only), and the words of any script with all others. 'auto' chooses for each example
        by its references, see `choose_tokenizer`.

    Returns:
      Each by its name, `intervals`, [low, high] by name, and for BLEU or ROUGE-L the tokenizer.
    """
    pairs = list(zip(predictions, references, strict=True))
    chosen = [choose_tokenizer(each) if tokenizer == "auto" else tokenizer for each in references]
    numbers_of, metric_of = zip(*(TEXT_METRICS[name] for name in names), strict=True)
    counted = [each(pairs, chosen) for each in numbers_of]
    parts = [np.array(each, np.float64).reshape(len(pairs), -1) for each in counted]
    every = np.concatenate(parts, axis=1)
    sums = np.concatenate([every.sum(axis=0)[None], *_resampled_sums(every)])
    own = np.split(sums, np.cumsum([part.shape[1] for part in parts])[:-1], axis=1)
    found = zip(names, metric_of, own, strict=True)
    result = _with_intervals({name: metric(part, len(pairs)) for name, metric, part in found})
    is_named = {"bleu", "rouge_l"} & {*names}
    return result | ({"tokenizer": " and ".join(sorted({*chosen}))} if is_named else {})


def _macro_f1(table: Counts) -> np.ndarray:
    return np.nanmean(_ratio(2 * table.right, table.actual + table.predicted, np.nan), axis=1)


def _matthews(table: Counts) -> np.ndarray:
    right, actual, predicted = (np.asarray(part, np.float64) for part in table)
    count = actual.sum(axis=1)
    spread = (count**2 - (actual**2).sum(axis=1)) * (count**2 - (predicted**2).sum(axis=1))
    above = right.sum(axis=1) * count - (actual * predicted).sum(axis=1)
    return _ratio(above, np.sqrt(spread), 0.0)


def calibration_error(scores: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """Returns float64[1 + RESAMPLES], of the examples and of resampled ones in the same bins."""
    scores, right = np.asarray(scores, np.float64), scores.argmax(axis=1) == answers
    probability = np.exp(scores.max(axis=1) - np.logaddexp.reduce(scores, axis=1))
    # Equal probabilities share a bin.
    bins = np.searchsorted(np.sort(probability), probability) * BINS // len(right)
    surplus = np.eye(BINS)[bins] * (right - probability)[:, None]
    sums = np.concatenate([surplus.sum(axis=0)[None], *_resampled_sums(surplus)])
    return np.abs(sums).sum(axis=1) / len(right)


# float64[S], and of each label float64[S, C], NaN without examples.
LABEL_METRICS: dict[str, Callable[..., np.ndarray]] = {
    "accuracy": lambda table: table.right.sum(axis=1) / table.actual.sum(axis=1),
    "class_accuracy": lambda table: _ratio(table.right, table.actual, np.nan),
    "macro_f1": _macro_f1,
    "matthews": _matthews,
    "calibration_error": calibration_error,
}

_Pairs = Sequence[tuple[str, Sequence[str]]]


def folded_words(text: str) -> list[str]:
    """Returns what white space divides, without case."""
    return text.casefold().split()


def squad_words(text: str) -> list[str]:
    """Returns the words of a text without case, punctuation and English articles."""
    bare = text.lower().translate(str.maketrans("", "", string.punctuation))
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


def unicode_words(text: str) -> list[str]:
    """Returns a text's words without case and punctuation; characters of scripts without spaces."""
    apart = _SPACELESS.sub(r" \g<0> ", unicodedata.normalize("NFC", text).lower())
    return "".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in apart).split()


def choose_tokenizer(references: Sequence[str]) -> str:
    """Returns '13a' for Latin script, 'char' for most words without spaces between, else 'intl'."""
    words = unicode_words(" ".join(references))
    spaceless, latin = (sum(map(bool, map(each.match, words))) for each in (_SPACELESS, _LATIN))
    if 2 * spaceless > len(words):
        return "char"
    return "intl" if spaceless or 2 * latin < len(words) else "13a"


def exact_matches(pairs: _Pairs, _: Sequence, words=folded_words) -> list[float]:
    """Returns 1 or 0 for each prediction."""
    return [float(words(text) in map(words, references)) for text, references in pairs]


def token_f1s(pairs: _Pairs, _: Sequence, words=folded_words) -> list[float]:
    """Returns the best F1 of each prediction."""

    def f1(one: list[str], other: list[str]) -> float:
        if not one or not other:
            return float(one == other)
        shared = (collections.Counter(one) & collections.Counter(other)).total()
        return 2 * shared / (len(one) + len(other))

    return [max(f1(words(text), words(one)) for one in references) for text, references in pairs]


def bleu_counts(pairs: _Pairs, tokenizers: Sequence[str]) -> list[list[int]]:
    """Counts for each prediction: right n-grams, n-grams, its length, the nearest reference's."""
    from sacrebleu.metrics import BLEU

    # The effective order changes a sentence's score and none of its counts.
    scorers = {name: BLEU(tokenize=name, effective_order=True) for name in set(tokenizers)}
    scores = [
        scorers[name].sentence_score(text, list(references))
        for name, (text, references) in zip(tokenizers, pairs, strict=True)
    ]
    return [[*score.counts, *score.totals, score.sys_len, score.ref_len] for score in scores]


def bleu(sums: np.ndarray, count: int) -> np.ndarray:
    """Returns BLEU float64[S], 0 to 100, of summed counts [S, 10], with exponential smoothing."""
    from sacrebleu.metrics import BLEU

    def score(counts: list[int]) -> float:
        *orders, length, nearest = counts  # of 1 to 4 words: first those that are right, then all
        return BLEU.compute_bleu(orders[:4], orders[4:], length, nearest, smooth_method="exp").score

    return np.array([*map(score, sums.astype(int).tolist())])


def rouge_ls(pairs: _Pairs, tokenizers: Sequence[str]) -> list[float]:
    """Returns the best F-measure of each prediction."""
    from rouge_score.rouge_scorer import RougeScorer

    unicode = RougeScorer(["rougeL"], tokenizer=types.SimpleNamespace(tokenize=unicode_words))
    latin = RougeScorer(["rougeL"])
    return [
        (latin if name == "13a" else unicode).score_multi(references, text)["rougeL"].fmeasure
        for name, (text, references) in zip(tokenizers, pairs, strict=True)
    ]


def paired_difference(values: np.ndarray, others: np.ndarray) -> tuple[float, float, float]:
    """Returns the mean difference between values of the same examples, float64[S, N] and
    float64[S', N] over seeds, and its interval over resampled examples, low and high."""
    difference = (values.mean(axis=0) - others.mean(axis=0))[:, None]
    draws = np.concatenate([*_resampled_sums(difference)])[:, 0] / len(difference)
    low, high = np.percentile(draws, PERCENTILES)
    return float(difference.mean()), float(low), float(high)


def _mean(sums: np.ndarray, count: int) -> np.ndarray:
    return sums[:, 0] / count


# Numbers of each example, which add up, and the metric of their sums [S, k] over N examples.
TEXT_METRICS: dict[str, tuple[Callable[..., Sequence], Callable[..., np.ndarray]]] = {
    "exact_match": (exact_matches, _mean),
    "token_f1": (token_f1s, _mean),
    "bleu": (bleu_counts, bleu),
    "rouge_l": (rouge_ls, _mean),
    "squad_exact_match": (functools.partial(exact_matches, words=squad_words), _mean),
    "squad_f1": (functools.partial(token_f1s, words=squad_words), _mean),
}
TEXT_DEFAULTS = ("exact_match", "token_f1", "bleu", "rouge_l")


def _resampled_sums(numbers: np.ndarray) -> Iterator[np.ndarray]:
    """Yields parts of float64[RESAMPLES, k]: sums of float64[N, k] over resampled examples."""
    count = len(numbers)
    rng, left = np.random.default_rng(SEED), RESAMPLES
    while left:
        size = min(left, max(_AT_ONCE // count, 1))
        chosen = rng.integers(count, size=(size, count)) + count * np.arange(size)[:, None]
        yield np.bincount(chosen.ravel(), minlength=size * count).reshape(size, count) @ numbers
        left -= size


def _ratio(above: np.ndarray, below: np.ndarray, otherwise: float) -> np.ndarray:
    return np.where(below > 0, above / np.where(below > 0, below, 1), otherwise)


def _with_intervals(found: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the first of each float64[1 + S], and `intervals` of the rest, with None for NaN."""
    intervals = _map(lambda draws: np.nanpercentile(draws[1:], PERCENTILES).tolist(), found)
    return {**_map(lambda draws: float(draws[0]), found), "intervals": intervals}


def _map(function: Callable, found: Any) -> Any:
    """Calls the function on an array, or on each in nested dicts; None if it begins with NaN."""
    if isinstance(found, dict):
        return {name: _map(function, inside) for name, inside in found.items()}
    return None if np.isnan(found[0]) else function(found)
