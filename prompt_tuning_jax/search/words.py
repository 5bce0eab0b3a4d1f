"""The words that searches draw from, and changes of single ones."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from prompt_tuning_jax.errors import UserError
from prompt_tuning_jax.models.language_model import LanguageModel


class Words(NamedTuple):
    """The ids to draw from."""

    first: np.ndarray  # for the first token of a prompt
    others: np.ndarray  # for all others
    embeddings: np.ndarray  # float32[V, E], what the model reads at every id
    joining: frozenset[int] = frozenset()  # tokens that go on with a word in front
    open: frozenset[int] = frozenset()  # tokens with which a word may go on

    def at(self, place: int, prompt: Any = ()) -> np.ndarray:
        """Returns the ids for a place of a prompt: its own alone if another one would leave a part
        of a word of several tokens, or would itself join what is behind it."""
        joining, before = self.joining.intersection, prompt[max(place - 1, 0) : place]
        goes_on = joining(prompt[place : place + 1]) and self.open.intersection(before)
        if goes_on or joining(prompt[place + 1 : place + 2]):
            return prompt[place : place + 1]
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
    joining, open_ = set[int](), set[int]()
    anchor = tokenizer.encode("a")[0]
    for index in tokenizer.text_ids:
        text = tokenizer.decode([*anchor, index])[1:]
        word, is_word = text.removeprefix(" "), text.removeprefix(" ").isalpha()
        # A text beyond ASCII may be a byte of a letter.
        if words_only and re.match(r"[\w'\x80-\U0010ffff]", text):
            joining.add(index)
        if words_only and re.search(r"[\w'\x80-\U0010ffff]\Z", text):
            open_.add(index)
        # A backslash has a meaning in a template.
        fits = is_word if words_only else text.isprintable() and not set("\\\ufffd") & {*text}
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
            "the model's vocabulary has no two whole words to choose from: give"
            " --config.search.words_only=false"
        )
    embeddings = np.asarray(lm.embed(np.arange(lm.spec.vocabulary)))
    return Words(
        np.array(first), np.array(others), embeddings, frozenset(joining), frozenset(open_)
    )


def swap(
    prompt: np.ndarray, count: int, rng: np.random.Generator, choices: Sequence[np.ndarray]
) -> np.ndarray:
    """Returns int[count, P], the prompt with one token changed each: a place that is drawn, of
    those with a choice, and there one of its choices."""
    made = np.repeat(prompt[None], count, axis=0)
    places = [place for place, ids in enumerate(choices) if (ids != prompt[place]).any()]
    for row in made:
        place = places[rng.integers(len(places))]
        row[place] = rng.choice(choices[place])
    return made
