"""Random swaps: the control. It has as many forwards as the gradient search, and no gradient."""

from prompt_tuning_jax.config.key import Key
from prompt_tuning_jax.search.words import swap

KEYS: dict[str, Key] = {}
GUIDED = False
GRADIENT = 3  # a gradient takes as long as so many forwards


def make(settings, words, prompt):
    """Returns no state, and the function that proposes."""
    choices = [words.at(place) for place in range(len(prompt))]

    def propose(state, rng, scored, gradient):
        return state, swap(scored.best, settings.candidates + GRADIENT, rng, choices)

    return {}, propose
