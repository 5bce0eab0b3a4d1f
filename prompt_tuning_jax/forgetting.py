"""What an adaptation does to unrelated text: the change of the model's cross-entropy on it."""

import itertools
from collections.abc import Sequence

import numpy as np

from prompt_tuning_jax import score as scoring
from prompt_tuning_jax.data.example import Example
from prompt_tuning_jax.data.rows import open_file, read_lines
from prompt_tuning_jax.errors import UserError
from prompt_tuning_jax.models.language_model import LanguageModel
from prompt_tuning_jax.models.sites import Given, virtual_tokens

TEXTS, TOKENS = 40, 128  # texts that are read, and the most tokens of each


def unrelated_texts(source: str) -> list[str]:
    """Returns the first texts of a file with one a line; for 'bbc_news' the bodies of articles, of
    each topic as many; and none for ''."""
    if not source:
        return []
    if source == "bbc_news":
        from prompt_tuning_jax.data.bbc_news import read_bodies

        return read_bodies(TEXTS)
    with open_file(source, "file of unrelated texts") as file:
        lines = (text.strip() for _, text in read_lines(file, source))
        texts = [*itertools.islice(filter(None, lines), TEXTS)]
    if not texts:
        raise UserError(f"{source!r} holds no text: write one a line")
    return texts


def cross_entropy(lm: LanguageModel, texts: Sequence[str], given: Given) -> float:
    """Returns the nats a token of texts with an adaptation. Its virtual tokens stand behind BOS or,
    without BOS, in front of the first token, which then is not scored."""
    slots = -1 - np.arange(virtual_tokens(given))
    room = min(TOKENS, lm.spec.max_positions // 8)  # the same with and without the adaptation
    examples = []
    for text in texts:
        ids = lm.tokenizer.encode(text)[0][:room]
        front = [lm.tokenizer.bos_id, *slots] if lm.tokenizer.add_bos else [*slots, ids.pop(0)]
        trunk, tail = (np.array(part, np.int32) for part in (front, ids))
        if ids:
            examples.append(Example(trunk, (tail,), 0, 0, 0))
    if not examples:
        raise UserError("each unrelated text has one token, and none to predict: give longer texts")
    scores = scoring.finite(lm, scoring.score(lm, examples, given))
    return -float(scores.sum()) / sum(len(example.tails[0]) for example in examples)
