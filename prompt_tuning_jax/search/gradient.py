"""Swaps that the gradient expects to help: AutoPrompt (Shin et al. 2020) with the candidates of GCG
(Zou et al. 2023): at a place that is drawn, one of the tokens with the best linearised loss."""

from prompt_tuning_jax.config.key import whole
from prompt_tuning_jax.search.words import swap

# The best tokens at each place, among which one is drawn.
KEYS = {"top_k": whole(64, 1)}


def make(settings, words, prompt):
    """Returns no state, and the function that proposes."""

    def propose(state, rng, scored, gradient):
        choices = []
        for place, change in enumerate(words.changes(gradient, scored.best)):
            ids = words.at(place)
            ids = ids[ids != scored.best[place]]
            choices.append(ids[change[ids].argsort(kind="stable")[: settings.top_k]])
        return state, swap(scored.best, settings.candidates, rng, choices)

    return {}, propose
