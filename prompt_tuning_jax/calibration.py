"""Calibration: label scores turned into probabilities that suit the data.

A language model prefers some words whatever the text says (Zhao et al. 2021). `fit_labels` learns a
scale and a bias for each label, as LinC does (Abbas et al. 2024). `fit_texts` knows no answers and
divides by the mean, as batch calibration does (Zhou et al. 2024).
"""

import collections
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from prompt_tuning_jax.config.key import string
from prompt_tuning_jax.errors import UserError

# The records to calibrate with. '' is the validation split: by texts all of it, by labels every
# second record of each label, so that the others rank prompts.
KEYS = {"split": string("")}
PULL = 1.0  # weight of the squared log-scales, beside the summed loss: a deviation of 0.7


class Calibration(NamedTuple):
    """A scale and a bias for the scores of each of C labels, and what they were fitted to."""

    by: str  # 'labels' or 'texts'
    examples: int
    scale: tuple[float, ...]
    bias: tuple[float, ...]

    def apply(self, scores: np.ndarray) -> np.ndarray:
        """Returns calibrated float32[N, C] log-probabilities of the labels, which sum to one."""
        return _normalise(scores * np.array(self.scale) + self.bias).astype(np.float32)


def halves(records: Iterable[Mapping[str, str]]) -> tuple[list, list]:
    """Returns records in two parts: of each label, the first, third … are in the second part."""
    parts: tuple[list, list] = [], []
    seen: collections.Counter[str] = collections.Counter()
    for record in records:
        seen[record["label"]] += 1
        parts[seen[record["label"]] % 2].append(record)
    return parts


def check_labels(answers: Sequence[Any] | np.ndarray, labels: int) -> None:
    """Raises a UserError if not all of so many labels, and two, are among the right ones."""
    found, needed = len(np.unique(answers)), max(labels, 2)
    if found < needed:
        wrong = f"the {len(answers)} examples to calibrate with have {found} of {needed} labels"
        raise UserError(f"{wrong}: give a config.calibration.split with examples of each label")


def fit_labels(scores: np.ndarray, answers: np.ndarray) -> Calibration:
    """Fits to float[N, C] log-probabilities and int[N] right labels: for the least cross-entropy,
    with the logarithms of the scales pulled towards 0. A label without an example is refused."""
    from scipy.optimize import minimize  # takes a while

    count, labels = scores.shape
    check_labels(answers, labels)
    # Around their means: whatever is added to all scores of a label, the fit is the same.
    means = scores.mean(axis=0, dtype=np.float64)
    centred, right = scores - means, np.eye(labels)[answers]

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        logs, bias = values.reshape(2, labels)
        scaled = centred * np.exp(logs)
        guessed = _normalise(scaled + bias)
        wrong = np.exp(guessed) - right
        total = PULL * (logs**2).sum() - guessed[right > 0].sum()
        slopes = (wrong * scaled).sum(axis=0) + 2 * PULL * logs, wrong.sum(axis=0)
        return total / count, np.concatenate(slopes) / count

    options = {"maxiter": 1000, "ftol": 1e-14, "gtol": 1e-9}
    fitted = minimize(loss, np.zeros(2 * labels), jac=True, method="L-BFGS-B", options=options)
    scale, bias = np.exp(fitted.x[:labels]), fitted.x[labels:]
    return Calibration("labels", count, (*scale.tolist(),), (*(bias - scale * means).tolist(),))


def fit_texts(scores: np.ndarray) -> Calibration:
    """Fits to float[N, C] log-probabilities: probabilities are divided by their mean. This assumes
    that each label is as frequent as any other."""
    count, labels = scores.shape
    mean = np.logaddexp.reduce(_normalise(scores), axis=0) - np.log(count)
    return Calibration("texts", count, (1.0,) * labels, (*(-mean).tolist(),))


def fit(by: str, scores: np.ndarray, answers: np.ndarray) -> Calibration:
    """Fits by 'labels' or by 'texts'."""
    return fit_labels(scores, answers) if by == "labels" else fit_texts(scores)


def _normalise(scores: np.ndarray) -> np.ndarray:
    scores = np.asarray(scores, np.float64)
    return scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)
