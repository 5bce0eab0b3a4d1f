"""The words that searches draw from, and changes of single ones."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from prompt_tuning_jax.errors import UserError
from prompt_tuning_jax.models.language_model import LanguageModel


class Words(NamedTuple):
    """The ids to draw from."""

    first: np.ndarray  # for the first token of a prompt
    others: np.ndarray  # for all others
    embeddings: np.ndarray  # float32[V, E], what the model reads at every id

    def at(self, place: int) -> np.ndarray:
        """Returns the ids for a place of the prompt."""
        return self.others if place else self.first

    def changes(self, gradient: np.ndarray, prompt: np.ndarray) -> np.ndarray:
        """Returns float32[P, V], by how much each token at each place would change the loss if that
        were linear in the vectors, by its gradient float32[P, E]."""
        products = gradient @ self.embeddings.T
        return products - products[np.arange(len(prompt)), prompt][:, None]


def find_words(lm: LanguageModel, words_only: bool, spaced: bool = False) -> Words:
    """Returns the tokens that their own text gives back: of whole printable words, or all. A word
    is whole if it is one token with a space in front; `spaced`: the first one has the space too.
    Raises a UserError if there is nothing to choose from."""
    tokenizer, alone, behind = lm.tokenizer, {}, {}
    anchor = tokenizer.encode("a")[0]
    for index in tokenizer.text_ids:
        text = tokenizer.decode([*anchor, index])[1:]
        word = text.removeprefix(" ")
        # A backslash has a meaning in a template.
        fits = word.isalpha() if words_only else text.isprintable() and not {*"\\\ufffd"} & {*text}
        if fits and tokenizer.encode(word)[0] == [index]:
            alone[f" {word}"] = index
        follows = fits and (word != text or not words_only)
        if follows and tokenizer.encode(f"a{text}")[0] == [*anchor, index]:
            behind[text] = index
    others = [*behind.values()]
    whole = [alone[text] for text in alone if text in behind or not words_only]
    first = others if spaced else whole
    if len(first) < 2 or len(others) < 2:
        raise UserError(
            "the model's vocabulary has no two words to choose from: give "
            + ("--config.search.words_only=false" if words_only else "another model")
        )
    embeddings = np.asarray(lm.embed(np.arange(lm.spec.vocabulary)))
    return Words(np.array(first), np.array(others), embeddings)


def swap(
    prompt: np.ndarray, count: int, rng: np.random.Generator, choices: Sequence[np.ndarray]
) -> np.ndarray:
    """Returns int[count, P], the prompt with one token changed each: a place that is drawn, and
    there one of its choices."""
    made = np.repeat(prompt[None], count, axis=0)
    for row in made:
        place = int(rng.integers(len(prompt)))
        row[place] = rng.choice(choices[place])
    return made
