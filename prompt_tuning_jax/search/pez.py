"""PEZ (Wen et al. 2023): the gradient at the nearest tokens moves a continuous copy of the prompt,
by Adam. One candidate a round."""

import numpy as np
import optax

from prompt_tuning_jax.config.key import number, string
from prompt_tuning_jax.errors import UserError
from prompt_tuning_jax.models.sites import PROMPT
from prompt_tuning_jax.run.artifact import load_artifact

KEYS = {
    "learning_rate": number(0.05),
    # The artifact of a soft prompt of `num_tokens`, to begin with in place of the start's vectors.
    "start_file": string(""),
}
ADAM, ARRAYS = optax.scale_by_adam(), ("vectors", "mean", "square")


def make(settings, words, prompt):
    """Returns the state, and the function that proposes."""

    def propose(state, rng, scored, gradient):
        vectors, *moments = (np.array(state[name], np.float32) for name in ARRAYS)
        adam = optax.ScaleByAdamState(np.int32(state["step"]), *moments)
        moved, adam = ADAM.update(gradient, adam)
        state = _state(vectors - settings.learning_rate * moved, adam, words)
        return state, np.array([state["prompt"]])

    vectors = words.embeddings[prompt]
    if settings.start_file:
        found = load_artifact(settings.start_file).tensors.get(PROMPT)
        if found is None or found.shape != vectors.shape:
            raise UserError(
                f"config.search.start_file is {settings.start_file!r}, which holds"
                f" {'no soft prompt' if found is None else found.shape}: expected a soft prompt of"
                f" {vectors.shape}, the number of tokens and the model's width"
            )
        vectors = np.asarray(found, np.float32)
    return _state(vectors, ADAM.init(vectors), words), propose


def _state(vectors, adam, words):
    """Returns the state, whose `prompt` has at each place the word with the nearest embedding."""
    arrays = zip(ARRAYS, (vectors, adam.mu, adam.nu), strict=True)
    found, nearest = {name: array.tolist() for name, array in arrays}, []
    for place, vector in enumerate(np.asarray(vectors)):
        ids = words.at(place)
        own = words.embeddings[ids]
        nearest.append(int(ids[((own**2).sum(1) - 2 * own @ vector).argmin()]))
    return found | {"step": int(adam.count), "prompt": nearest}
