"""Searches for a hard prompt, which a person can read: a file each, and a line in `SEARCHES`.

A search is `make(config.search, words, prompt) -> state, propose`, and `KEYS`, the keys of the
section that only this search has. `propose(state, rng, scored, gradient) -> state, candidates
int[n, P]` is pure. A state is a dict of what JSON can hold. The gradient, float32[P, E], is that of
the loss in the vectors of the state's `prompt`, or else of the best prompt (`words.changes` makes
[P, V] of it). It is None if the search says `GUIDED = False`.
"""

from types import ModuleType

from prompt_tuning_jax.config.key import among, number, string, switch, whole
from prompt_tuning_jax.search import gradient, pez, random_swaps
from prompt_tuning_jax.search.loop import Found, begin, rehearse, run

__all__ = ("KEYS", "SEARCHES", "Found", "begin", "rehearse", "run")

SEARCHES: dict[str, ModuleType] = {"gradient": gradient, "pez": pez, "random": random_swaps}
KEYS = {
    "name": among("gradient", SEARCHES),
    # Tokens of the prompt; 0: as many as the start has.
    "num_tokens": whole(0),
    # The prompt to start from; '' draws words.
    "start": string(""),
    # Where the prompt stands, as {soft}; '' is config.task.template.
    "template": string(""),
    # Only whole printable words come in, which a person can read and copy. A word of the start that
    # has several tokens may lose some of them; what is left then joins the new word.
    "words_only": switch(True),
    # Weight, in what is proposed, of the model's own negative log-likelihood of the prompt, nats a
    # token. The choice on the validation split is without it.
    "fluency": number(0.0),
    "rounds": whole(40, 1),
    # In a round: new prompts; examples that each is scored on; and how many other sets of as many
    # examples the best few are scored on again.
    "candidates": whole(16, 1),
    "examples": whole(32, 1),
    "again": whole(2, 1),
    # Rounds between validations, after which a search goes on from the lowest validation loss.
    "validate_every": whole(4, 1),
}
