"""Metrics by name, each with a bootstrap interval: pure functions of predictions and answers.

An interval is the middle 95 % of what the metric is on 2,000 resamples of the examples, drawn with
replacement by a fixed seed (Efron 1979's percentile bootstrap; Koehn 2004 for BLEU). It tells what
other examples of the same kind would change, not what another seed of training would.
"""

import collections
import re
import string
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from prompt_tuning_jax.errors import UserError

RESAMPLES, SEED = 2000, 0
PERCENTILES = (2.5, 97.5)
_ORDERS = 4  # BLEU's longest n-gram
_AT_ONCE = 1 << 22  # numbers drawn at once, so that memory does not grow with the examples


class Counts(NamedTuple):
    """Examples by label, int64[S, C]: rightly predicted, of this label, predicted to be."""

    right: np.ndarray
    actual: np.ndarray
    predicted: np.ndarray


def label_metrics(
    predictions: np.ndarray, answers: np.ndarray, values: Sequence[str], names: Sequence[str]
) -> dict[str, Any]:
    """Metrics of predicted labels.

    Args:
        predictions: int[N], places among `values`.
        answers: int[N], the right ones.
        values: the C labels.
        names: of
            accuracy: share of examples that are right;
            class_accuracy: the same of each label's examples (its recall), by value, None if none;
            macro_f1: mean of F1 over the labels that were predicted or right at all;
            matthews: correlation of prediction and answer (Matthews 1975; Gorodkin 2004 for C > 2),
                0 where either is always the same.

    Returns:
        Each by its name, and `intervals`, [low, high] by name.
    """
    cells, counts = np.unique(answers * len(values) + predictions, return_counts=True)
    # A resample of examples is one of the cells of their table, of which there are few.
    draws = np.random.default_rng(SEED).multinomial(
        len(answers), counts / len(answers), size=RESAMPLES
    )
    draws = np.concatenate([counts[None], draws])
    actual, predicted = (
        (part[:, None] == np.arange(len(values))).astype(np.int64)
        for part in np.divmod(cells, len(values))
    )
    table = Counts(draws @ (actual * predicted), draws @ actual, draws @ predicted)
    result: dict[str, Any] = {}
    intervals: dict[str, Any] = {}
    for name in names:
        if name == "class_accuracy":
            found = [_summary(column) for column in class_accuracy(table).T]
            result[name] = dict(zip(values, (value for value, _ in found), strict=True))
            intervals[name] = dict(zip(values, (bounds for _, bounds in found), strict=True))
        else:
            result[name], intervals[name] = _summary(LABELLED[name](table))
    return {**result, "intervals": intervals}


def text_metrics(
    predictions: Sequence[str], references: Sequence[Sequence[str]], names: Sequence[str]
) -> dict[str, Any]:
    """Metrics of written texts; of several references the best for the prediction counts.

    Args:
        predictions: N texts.
        references: at least one for each.
        names: of
            exact_match: share of texts that are a reference, but for case, articles and punctuation
                (as for SQuAD, Rajpurkar et al. 2016);
            token_f1: mean F1 of the words that prediction and reference share, with the same left
                out;
            bleu: BLEU of the corpus, 0 to 100, as sacrebleu computes it by default (Post 2018);
            rouge_l: mean F-measure of ROUGE-L, as rouge-score computes it without stemming (Lin
                2004): of Latin letters and digits alone.

    Returns:
        Each by its name, and `intervals`, [low, high] by name.

    Raises:
        UserError: a metric's package is not installed.
    """
    pairs = list(zip(predictions, references, strict=True))
    parts = [np.array(TEXTS[name][0](pairs), np.float64).reshape(len(pairs), -1) for name in names]
    every = np.concatenate([np.zeros((len(pairs), 0)), *parts], axis=1)
    sums = np.concatenate([every.sum(axis=0)[None], *_resampled_sums(every)])
    result: dict[str, Any] = {}
    intervals: dict[str, Any] = {}
    begin = 0
    for name, part in zip(names, parts, strict=True):
        own = sums[:, begin : begin + part.shape[1]]
        result[name], intervals[name] = _summary(TEXTS[name][1](own, len(pairs)))
        begin += part.shape[1]
    return {**result, "intervals": intervals}


def accuracy(table: Counts) -> np.ndarray:
    """float64[S]."""
    return table.right.sum(axis=1) / table.actual.sum(axis=1)


def class_accuracy(table: Counts) -> np.ndarray:
    """float64[S, C], NaN for a label without examples."""
    return _ratio(table.right, table.actual, np.nan)


def macro_f1(table: Counts) -> np.ndarray:
    """float64[S]."""
    return np.nanmean(_ratio(2 * table.right, table.actual + table.predicted, np.nan), axis=1)


def matthews(table: Counts) -> np.ndarray:
    """float64[S]."""
    right, actual, predicted = (np.asarray(part, np.float64) for part in table)
    count = actual.sum(axis=1)
    spread = (count**2 - (actual**2).sum(axis=1)) * (count**2 - (predicted**2).sum(axis=1))
    above = right.sum(axis=1) * count - (actual * predicted).sum(axis=1)
    return _ratio(above, np.sqrt(spread), 0.0)


LABELLED: dict[str, Callable[[Counts], np.ndarray]] = {
    "accuracy": accuracy,
    "class_accuracy": class_accuracy,
    "macro_f1": macro_f1,
    "matthews": matthews,
}

_Pairs = Sequence[tuple[str, Sequence[str]]]


def words(text: str) -> list[str]:
    """The words of a text without case, punctuation and English articles."""
    bare = text.lower().translate(str.maketrans("", "", string.punctuation))
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


def exact_matches(pairs: _Pairs) -> list[float]:
    """1 or 0 for each prediction."""
    return [float(words(text) in map(words, references)) for text, references in pairs]


def token_f1s(pairs: _Pairs) -> list[float]:
    """The best F1 of each prediction."""

    def f1(one: list[str], other: list[str]) -> float:
        if not one or not other:
            return float(one == other)
        shared = (collections.Counter(one) & collections.Counter(other)).total()
        return 2 * shared / (len(one) + len(other))

    return [
        max(f1(words(text), words(reference)) for reference in references)
        for text, references in pairs
    ]


def bleu_counts(pairs: _Pairs) -> list[list[int]]:
    """Of each prediction: n-grams that are right, n-grams, its length, the nearest reference's."""
    try:
        from sacrebleu.metrics import BLEU
    except ImportError as error:
        raise _not_installed("bleu", "sacrebleu") from error
    # The effective order changes a sentence's score and none of its counts.
    scorer = BLEU(effective_order=True)
    scores = [scorer.sentence_score(text, list(references)) for text, references in pairs]
    return [[*score.counts, *score.totals, score.sys_len, score.ref_len] for score in scores]


def bleu(sums: np.ndarray, count: int) -> np.ndarray:
    """BLEU float64[S], 0 to 100, of summed counts [S, 10], with exponential smoothing."""
    right, held = sums[:, :_ORDERS], sums[:, _ORDERS : 2 * _ORDERS]
    # Each order without a match counts as half as much as the one before: 1/2, 1/4, ….
    smoothed = np.where(right > 0, right, 0.5 ** (right == 0).cumsum(axis=1))
    precisions = smoothed / np.maximum(held, 1)
    length, nearest = np.maximum(sums[:, -2], 1), sums[:, -1]
    brevity = np.exp(np.minimum(1 - nearest / length, 0))
    score = 100 * brevity * np.exp(np.log(precisions).mean(axis=1))
    return np.where((held > 0).all(axis=1) & (right > 0).any(axis=1), score, 0.0)


def rouge_ls(pairs: _Pairs) -> list[float]:
    """The best F-measure of each prediction."""
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise _not_installed("rouge_l", "rouge-score") from error
    scorer = RougeScorer(["rougeL"])
    return [scorer.score_multi(references, text)["rougeL"].fmeasure for text, references in pairs]


def _mean(sums: np.ndarray, count: int) -> np.ndarray:
    return sums[:, 0] / count


# Numbers of each example, which add up, and the metric of their sums [S, k] over a count of them.
TEXTS: dict[str, tuple[Callable[[_Pairs], Sequence], Callable[[np.ndarray, int], np.ndarray]]] = {
    "exact_match": (exact_matches, _mean),
    "token_f1": (token_f1s, _mean),
    "bleu": (bleu_counts, bleu),
    "rouge_l": (rouge_ls, _mean),
}


def _resampled_sums(numbers: np.ndarray) -> Iterator[np.ndarray]:
    """Yields parts of float64[RESAMPLES, k]: sums of float64[N, k] over resampled examples."""
    count = len(numbers)
    rng, left = np.random.default_rng(SEED), RESAMPLES
    while left:
        size = min(left, max(_AT_ONCE // count, 1))
        chosen = rng.integers(count, size=(size, count)) + count * np.arange(size)[:, None]
        times = np.bincount(chosen.ravel(), minlength=size * count).reshape(size, count)
        yield times @ numbers
        left -= size


def _ratio(above: np.ndarray, below: np.ndarray, otherwise: float) -> np.ndarray:
    return np.where(below > 0, above / np.where(below > 0, below, 1), otherwise)


def _summary(values: np.ndarray) -> tuple[float | None, list[float] | None]:
    """The first of float64[1 + S], and the interval of the others; None for what is undefined."""
    if np.isnan(values[0]):
        return None, None
    low, high = np.nanpercentile(values[1:], PERCENTILES)
    return float(values[0]), [float(low), float(high)]


def _not_installed(metric: str, package: str) -> UserError:
    return UserError(
        f"task.metrics has {metric!r}, which needs the package {package}: type `pip install"
        f" {package}`, or name other metrics"
    )
