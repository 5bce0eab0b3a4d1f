"""Where the first values of virtual tokens come from: float32[P, D] each.

Recipes: Lester et al. 2021 (uniform, sampled vocabulary, class labels); a text's own embeddings and
an earlier prompt, as in google-research/prompt-tuning.
"""

import jax
import jax.numpy as jnp
import numpy as np

from prompt_tuning_jax.config.key import among, number, string, whole
from prompt_tuning_jax.errors import UserError
from prompt_tuning_jax.models.sites import PROMPT


def first_vectors(rng, settings, lm, task, start):
    """Returns the virtual tokens that `method.init` names, float32[P, D]. `settings` is the section
    `method` of a config with `TOKEN_KEYS`, and `start` what is in `method.init_file`."""
    check_positions(settings, lm)
    if settings.init == "file":
        return _given(settings, lm, start)
    return INITS[settings.init](rng, settings, lm, task)


def check_positions(settings, lm):
    """Refuses virtual tokens that leave no position for the text, before they take memory."""
    if settings.num_virtual_tokens >= lm.spec.max_positions:
        raise UserError(
            f"config.method.num_virtual_tokens is {settings.num_virtual_tokens}: expected fewer "
            f"than the {lm.spec.max_positions} positions of '{lm.name}', as the text needs some."
        )


def from_uniform(rng, settings, lm, task):
    """Draws uniformly from ±`method.init_scale`. Lester et al. take 0.5, which is tiny beside a
    T5's embeddings and huge beside a Llama's."""
    shape = (settings.num_virtual_tokens, lm.spec.prompt_width)
    return jax.random.uniform(rng, shape, jnp.float32, -1, 1) * settings.init_scale


def from_vocabulary(rng, settings, lm, task):
    """Draws embeddings without repetition from the `method.init_vocabulary` lowest ids (0: all).
    Ids are roughly in order of frequency; special tokens are left out."""
    size, tokens = settings.init_vocabulary or lm.spec.vocabulary, settings.num_virtual_tokens
    wanted = f"{tokens} virtual tokens: give a larger one, or 0 for all"
    return draw_embeddings(rng, tokens, lm, size, f"init_vocabulary is {size}", wanted)


def draw_embeddings(rng, count, lm, below, given, wanted):
    """Returns float32[count, D] embeddings of different tokens with ids below a number, or raises a
    UserError with the setting that was `given` and what was `wanted`, if there are too few."""
    # Others are special, or rows behind the vocabulary that no text was trained on.
    known = lm.tokenizer.text_ids if lm.tokenizer else range(below)  # a plan needs no tokenizer
    ids = np.array([index for index in known if index < below])
    if len(ids) < count:
        raise UserError(f"config.method.{given}, which leaves {len(ids)} tokens for {wanted}.")
    return lm.embed(jax.random.choice(rng, ids, (count,), replace=False))


def from_labels(rng, settings, lm, task):
    """Returns the task's label words, a word of several tokens as their mean, and after them
    tokens of the vocabulary."""
    rows = []
    for _, word in task.labels:
        ids, offsets = lm.tokenizer.encode(f"a {word}")  # behind another text, as a label stands
        own = [number for number, (_, end) in zip(ids, offsets, strict=True) if end > 1]
        rows.append(lm.embed(np.array(own)).mean(0))
    if not rows:
        raise UserError(
            "config.method.init is 'labels' and the task has none: write 'vocabulary' or 'text'."
        )
    rest = from_vocabulary(rng, settings, lm, task)
    return jnp.concatenate([jnp.stack(rows), rest])[: settings.num_virtual_tokens]


def from_text(rng, settings, lm, task):
    """Returns the embeddings of the tokens of `method.init_text`, repeated or cut to P."""
    ids = lm.tokenizer.encode(settings.init_text)[0]
    return lm.embed(np.resize(np.array(ids), settings.num_virtual_tokens))


def from_demonstrations(rng, settings, lm, task):
    """Returns the embeddings of whole demonstrations, which `prepare` chose: P is the number of
    their tokens (context tuning, 2507.04221)."""
    return lm.embed(np.array(task.front))


def _given(settings, lm, start):
    """Returns the soft prompt in the tensors to start from."""
    path, wanted = settings.init_file, (settings.num_virtual_tokens, lm.spec.prompt_width)
    vectors = start.sites.get(PROMPT)
    if vectors is None:
        raise UserError(f"config.method.init_file is '{path}', which holds no soft prompt.")
    if vectors.shape == wanted and vectors.dtype != bool and np.can_cast(vectors.dtype, np.float64):
        with np.errstate(over="ignore"):  # refused below
            vectors = np.asarray(vectors, np.float32)
        if np.isfinite(vectors).all():
            return jnp.asarray(vectors)
    raise UserError(
        f"config.method.init_file is '{path}', which holds {vectors.shape} of {vectors.dtype}: "
        f"expected {wanted} (num_virtual_tokens and the model's width) of finite float32 numbers."
    )


INITS = {
    "uniform": from_uniform,
    "vocabulary": from_vocabulary,
    "labels": from_labels,
    "text": from_text,
    "demonstrations": from_demonstrations,
}
TOKEN_KEYS = {
    # With 'demonstrations' the most: P is the number of tokens of those that fit.
    "num_virtual_tokens": whole(16, 1),
    "init": among("vocabulary", (*INITS, "file")),
    "init_scale": number(0.5),
    "init_text": string("").if_fits(
        "a text, because config.method.init is 'text'",
        lambda value, settings: value.strip() or settings["init"] != "text",
    ),
    # Of how many of the lowest token ids 'vocabulary' draws; 0: of all.
    "init_vocabulary": whole(0),
    # The folder of an artifact, or a .npy file of numbers [P, D].
    "init_file": string("").if_fits(
        "a path, because config.method.init is 'file'",
        lambda value, settings: value or settings["init"] != "file",
    ),
}
