"""Where the first values of virtual tokens come from: float32[P, D] each.

Recipes: Lester et al. 2021 (uniform, sampled vocabulary, class labels); a text's own embeddings and
an earlier prompt, as in google-research/prompt-tuning.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from prompt_tuning_jax.errors import UserError
from prompt_tuning_jax.run import artifact


def first_vectors(rng, settings, lm, task):
    """What `method.init` names, float32[P, D].

    Raises:
      UserError: more virtual tokens than positions, or what the init needs is not there.
    """
    check_positions(settings, lm)
    return INITS[settings.init](rng, settings, lm, task)


def check_positions(settings, lm):
    """Refuses virtual tokens that leave the text no position, before they take memory."""
    if settings.num_virtual_tokens >= lm.spec.max_positions:
        raise UserError(
            f"config.method.num_virtual_tokens is {settings.num_virtual_tokens}: expected fewer "
            f"than the {lm.spec.max_positions} positions of '{lm.name}', as the text needs some."
        )


def uniform(rng, settings, lm, task):
    """Uniform in ±`method.init_scale`. Lester et al. take 0.5, which is tiny beside a T5's
    embeddings and huge beside a Llama's."""
    shape = (settings.num_virtual_tokens, lm.spec.width)
    return jax.random.uniform(rng, shape, jnp.float32, -1, 1) * settings.init_scale


def vocabulary(rng, settings, lm, task):
    """Embeddings of tokens drawn without repetition from the `method.init_vocabulary` lowest ids,
    0 for all. Ids are in order of frequency, near enough; special tokens are left out."""
    size = settings.init_vocabulary or lm.spec.vocabulary
    special = set(lm.tokenizer.specials.values())
    ids = np.array(
        [index for index in range(min(size, lm.spec.vocabulary)) if index not in special]
    )
    if len(ids) < settings.num_virtual_tokens:
        raise UserError(
            f"method.init_vocabulary={size} leaves {len(ids)} tokens for "
            f"{settings.num_virtual_tokens} virtual tokens; give a larger one, or 0 for all."
        )
    chosen = jax.random.choice(rng, ids, (settings.num_virtual_tokens,), replace=False)
    return _embeddings(lm, chosen)


def labels(rng, settings, lm, task):
    """The task's label words, a word of several tokens as their mean; the rest as `vocabulary`."""
    words = [lm.tokenizer.encode(" " + word)[0] for _, word in task.labels]
    if not words:
        raise UserError(
            "method.init='labels' needs a task with labels; take 'vocabulary' or 'text'."
        )
    rows = jnp.stack([_embeddings(lm, np.array(ids)).mean(0) for ids in words])
    rest = vocabulary(rng, settings, lm, task)
    return jnp.concatenate([rows, rest])[: settings.num_virtual_tokens]


def text(rng, settings, lm, task):
    """The embeddings of `method.init_text`'s tokens, repeated or cut to P."""
    ids = lm.tokenizer.encode(settings.init_text)[0]
    if not ids:
        raise UserError("method.init='text' needs words in method.init_text, which is empty.")
    return _embeddings(lm, np.resize(np.array(ids), settings.num_virtual_tokens))


def file(rng, settings, lm, task):
    """An earlier artifact's prompt, or a `.npy` file of [P, D] numbers."""
    path = Path(settings.init_file)
    if path.suffix == ".npy":
        if not path.is_file():
            raise UserError(f"method.init_file='{path}' is not there.")
        try:
            # Mapped, so that what it declares is compared with its size before memory is taken.
            vectors = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError) as error:
            # What numpy says of others is that they may be pickles, and how to open these.
            said = "" if "pickle" in str(error) else f" ({error})"
            raise UserError(f"method.init_file='{path}' is not a .npy array{said}.") from error
    else:
        vectors = artifact.load_artifact(path).collections.get("prompt", {}).get("vectors")
        if vectors is None:
            raise UserError(f"the artifact '{path}' holds no soft prompt to start from.")
    wanted = (settings.num_virtual_tokens, lm.spec.width)
    real = vectors.dtype != bool and np.can_cast(vectors.dtype, np.float64)
    if vectors.shape == wanted and real:
        with np.errstate(over="ignore"):  # refused below
            vectors = np.asarray(vectors, np.float32)
        if np.isfinite(vectors).all():
            return jnp.asarray(vectors)
    raise UserError(
        f"method.init_file='{path}' holds {vectors.shape} of {vectors.dtype}; {wanted} of numbers "
        "that float32 can hold are needed (method.num_virtual_tokens and the model's width)."
    )


def _embeddings(lm, ids):
    return lm.params["embed"]["embedding"][jnp.asarray(ids)].astype(jnp.float32)


INITS = {
    "uniform": uniform,
    "vocabulary": vocabulary,
    "labels": labels,
    "text": text,
    "file": file,
}
