"""Scores of many prompts on the same examples.

The text in front of the examples is computed once a prompt, many prompts together as rows. The
examples' own positions are packed once, and see the keys and values of one prompt after the other.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prompt_tuning_jax.data.batch import Batch, behind_front
from prompt_tuning_jax.models.cached import bake_rows
from prompt_tuning_jax.models.decoder import Decoder
from prompt_tuning_jax.models.language_model import LanguageModel
from prompt_tuning_jax.models.sites import PREFIX, PROMPT, Given, bind
from prompt_tuning_jax.step import target_scores

AT_ONCE = 4  # prompts whose text is computed together


class Part(NamedTuple):
    """N examples: their ranked batch, whose shared positions hold the slots of the prompt, their
    right answers int[N], and the number of answers of each."""

    batch: Batch
    answers: np.ndarray
    labels: int


def score_prompts(
    lm: LanguageModel, prompts: np.ndarray, part: Part
) -> tuple[np.ndarray, np.ndarray]:
    """Returns float32[n, N, C] nats, the log-probability of each answer of each example behind each
    of the prompts int[n, P]; and float32[n], the nats a token of the prompts themselves."""
    front, size = part.batch.shared, len(part.batch.shared)
    rows, filled, found = behind_front(part.batch), fill(front, prompts), []
    count = part.answers.size * part.labels
    for begin in range(0, len(prompts), AT_ONCE):
        # Of one size, so that there is one program.
        some = np.resize(filled[begin : begin + AT_ONCE], (AT_ONCE, size))
        found.append(_score(lm.module, lm.params, some, rows, front < 0, count))
    scores, own = (np.concatenate(each)[: len(prompts)] for each in zip(*found, strict=True))
    return scores.reshape(len(prompts), -1, part.labels), own


def fill(ids: np.ndarray, prompts: np.ndarray) -> np.ndarray:
    """Returns int32[n, S], ids int32[S] with each of the prompts int[n, P] in the slots."""
    filled = np.repeat(ids[None], len(prompts), axis=0)
    filled[:, ids < 0] = prompts[:, -1 - ids[ids < 0]]
    return filled


@functools.partial(jax.jit, static_argnums=(0, 5))
def _score(module: Decoder, params, fronts, rows: Batch, slots, count: int):
    keys, values, hidden = bake_rows(module, params, fronts)

    def one(prefix):
        given = Given(dict(zip(PREFIX.values(), prefix, strict=True)))
        return _answers(module, bind(module.spec, params, given), rows, count)

    # A CPU is busy with one prompt.
    together = None if jax.default_backend() == "cpu" else AT_ONCE
    scores = jax.lax.map(one, (keys, values), batch_size=together)
    # Nothing predicts the very first token.
    logits = module.apply({"params": params}, hidden[:, :-1], method="logits")
    own = jnp.take_along_axis(jax.nn.log_softmax(logits), fronts[:, 1:, None], axis=-1)[..., 0]
    return scores, -(own * slots[1:]).sum(-1) / jnp.maximum(slots[1:].sum(), 1)


def _answers(module: Decoder, variables, batch: Batch, count: int):
    """Returns float32[N * C]: the sum over the tokens of each answer."""
    values = target_scores(module, variables, batch)[0] * batch.target_weights
    return jnp.zeros(count).at[batch.target_example.ravel()].add(values.ravel())


def label_loss(scores, answers):
    """Returns the mean negative log-likelihood of the right answers int[N] among the C labels, in
    nats, of scores float32[..., N, C]: how likely all labels are together plays no part."""
    shares = jax.nn.log_softmax(scores, axis=-1)
    return -shares[..., np.arange(len(answers)), answers].mean(-1)


def loss_gradient(lm: LanguageModel, prompt: np.ndarray, part: Part) -> np.ndarray:
    """Returns float32[P, E], the gradient of the label loss in the vectors of a prompt int[P]."""
    given = lm.embed(prompt), part.batch, part.answers, part.labels
    return np.asarray(_gradient(lm.module, lm.params, *given))


@functools.partial(jax.jit, static_argnums=(0, 5))
def _gradient(module: Decoder, params, vectors, batch: Batch, answers, labels: int):
    def loss(vectors):
        variables = bind(module.spec, params, Given({PROMPT: vectors}))
        scores = _answers(module, variables, batch, len(answers) * labels)
        return label_loss(scores.reshape(-1, labels), answers)

    return jax.grad(loss)(vectors)
