"""Swaps that the gradient expects to help: AutoPrompt (Shin et al. 2020) with the candidates of GCG
(Zou et al. 2023): at a place that is drawn, one of the tokens with the best linearised loss.

The gradient is an average over rounds (MAC, Zhang and Wei 2024): near a good prompt, the gradients
of two rounds have little in common, and one alone proposes nothing better than random tokens.
"""

import numpy as np

from prompt_tuning_jax.config.key import whole
from prompt_tuning_jax.search.words import swap

# The best tokens at each place, among which one is drawn.
KEYS = {"top_k": whole(8, 1)}
DECAY = 0.9  # of the average, a round


def make(settings, words, prompt):
    """Returns no state yet, later the average float[P, E], and the function that proposes."""

    def propose(state, rng, scored, gradient):
        # Of length 1 at each place: they are much longer at the start than at a good prompt.
        new = gradient / np.maximum(np.linalg.norm(gradient, axis=1, keepdims=True), 1e-30)
        average, choices = DECAY * np.array(state.get("average", 0.0)) + new, []
        for place, change in enumerate(words.changes(average, scored.best)):
            ids = words.at(place)
            ids = ids[ids != scored.best[place]]
            choices.append(ids[change[ids].argsort(kind="stable")[: settings.top_k]])
        made = swap(scored.best, settings.candidates, rng, choices)
        return {"average": average.tolist()}, made

    return {}, propose
