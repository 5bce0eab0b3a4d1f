"""Warnings that a person can act on: each is a sentence, or "" where nothing is wrong."""

import itertools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from prompt_tuning_jax.errors import short

FAR = 3.0  # how many times larger or smaller a prompt's norm is before it is worth a word
WINDOW = 20  # losses whose mean is compared with that of as many later ones
PATIENCE = 50  # steps after the warm-up in which a loss should have moved
STILL = 0.01  # share of the loss that counts as a move
ONE_SIDED = 0.95  # share of answers that are the same
PAIRS = 3  # of labels that one sentence names


@jax.jit
def _mean_norm(vectors):
    """Mean length, float32[], of `[N, D]` vectors."""
    return jnp.linalg.norm(vectors.astype(jnp.float32), axis=-1).mean()


def prompt_norm(lm, collections) -> str:
    """Whether virtual tokens are far longer or shorter than the embeddings that the model knows."""
    if "prompt" not in collections:
        return ""
    virtual = float(_mean_norm(collections["prompt"]["vectors"]))
    known = float(_mean_norm(lm.params["embed"]["embedding"]))
    if known / FAR <= virtual <= known * FAR:
        return ""
    turn = "lower" if virtual > known else "raise"
    return (
        f"the virtual tokens have a norm of {virtual:.2g} on average and the model's embeddings "
        f"{known:.2g}: {turn} learning_rate, or start from embeddings (method.init)"
    )


def unmoved(first: Sequence[float], last: Sequence[float], step: int) -> str:
    """Whether the loss, by the means of its first values and of those up to `step`, has stayed."""
    before, after = float(np.mean(first)), float(np.mean(last))
    if not after > (1 - STILL) * before:
        return ""
    return (
        f"after {step} steps the loss has not moved, from {before:.3f} to {after:.3f}: raise "
        "learning_rate, or look at what the model reads with --dry_run"
    )


def first_values(settings, lm) -> str:
    """What virtual tokens would begin with and is not read, or how their text has been made to fit
    their number."""
    for init in ("text", "file"):
        if settings[f"init_{init}"] and settings.init != init:
            return (
                f"method.init_{init} is not read: method.init is {settings.init!r}; give {init!r}"
                " for it"
            )
    if settings.init != "text":
        return ""
    held, wanted = len(lm.tokenizer.encode(settings.init_text)[0]), settings.num_virtual_tokens
    if held == wanted:
        return ""
    return (
        f"method.init_text has {held} tokens and is {'cut' if held > wanted else 'repeated'} to "
        f"the {wanted} virtual tokens"
    )


def other_template(artifact: str, config: str) -> str:
    """Whether an artifact is evaluated by a config of another template."""
    if artifact == config:
        return ""
    return (
        f"the artifact's own template is read, {short(artifact, 80)}, and not the config's, "
        f"{short(config, 80)}"
    )


def other_labels(artifact: Sequence[Sequence[str]], labels: Sequence[tuple[str, str]]) -> str:
    """Whether an artifact is evaluated with other labels, or words for them, than its own."""
    own = [tuple(pair) for pair in artifact]
    if not own or own == list(labels):
        return ""
    return (
        f"the config's labels are asked for, {short(list(labels), 80)}, and the artifact was"
        f" trained for {short(own, 80)}: leave task.labels empty for those"
    )


def trained_on(
    rows: Sequence[Mapping[str, str]],
    trained: Sequence[Mapping[str, str]],
    fields: Sequence[str],
    split: str,
) -> str:
    """Whether records of a split have the input, the texts of `fields`, of any trained on."""
    known = {tuple(row[field] for field in fields) for row in trained}
    count = sum(tuple(row[field] for field in fields) in known for row in rows)
    if not count:
        return ""
    return (
        f"{count} of {len(rows)} records of {split} are trained on too, with the same input: they "
        "tell nothing about others; take them out of one of the two splits"
    )


def repeated(batch_size: int, examples: int) -> str:
    """Whether updates have more examples than there are."""
    if batch_size <= examples:
        return ""
    return (
        f"batch_size is {batch_size} and there are {examples} training examples, some of which "
        "each update reads more than once: lower batch_size"
    )


def other_devices(before: int, now: int) -> str:
    """What a run that goes on with another number of devices cannot promise."""
    if before == now:
        return ""
    return (
        f"the run was saved with devices: {before}, and goes on with devices: {now}; sums are "
        "added up in another order, so it will not end bit for bit as one that was never stopped"
    )


def one_answer(chosen: np.ndarray, answers: np.ndarray, labels: Sequence[tuple[str, str]]) -> str:
    """Whether int[N] chosen labels are nearly all the same and the right ones are not."""
    if len(labels) < 2:
        return ""
    counts = np.bincount(chosen, minlength=len(labels)) / len(chosen)
    most = int(counts.argmax())
    right = float((answers == most).mean())
    if counts[most] < ONE_SIDED or right >= ONE_SIDED * counts[most]:
        return ""
    return (
        f"{counts[most]:.0%} of the validation examples are answered {labels[most][0]!r}, which is "
        f"right for {right:.0%}: train longer, raise learning_rate, or balance the training split"
    )


def alike(labels: Sequence[tuple[str, str]], tails: Sequence[np.ndarray]) -> list[str]:
    """Which labels' words begin with the same tokens, given the tokens of each."""
    whole, first = [], []
    words = [(word, tail) for (_, word), tail in zip(labels, tails, strict=False)]
    for pair in itertools.combinations(words, 2):
        (word, tail), (longer, other) = sorted(pair, key=lambda one: len(one[1]))
        if np.array_equal(other[: len(tail)], tail):
            whole.append(f"{word!r} in {longer!r}")
        elif tail[0] == other[0]:
            first.append(f"{pair[0][0]!r} and {pair[1][0]!r}")
    sentences = []
    if whole:
        sentences.append(
            f"a label's word is the beginning of another's, which can then never be ranked above "
            f"it: {_some(whole)}; choose other words in task.labels, as 'value=word'"
        )
    if first:
        sentences.append(
            f"labels' words begin with the same token, which tells nothing about them: "
            f"{_some(first)}; other words in task.labels, as 'value=word', may do better"
        )
    return sentences


def _some(pairs: Sequence[str]) -> str:
    more = f" and {len(pairs) - PAIRS} more" if len(pairs) > PAIRS else ""
    return ", ".join(pairs[:PAIRS]) + more
