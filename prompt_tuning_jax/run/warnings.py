"""Warnings that a person can act on. Each function returns a sentence, or "" if all is well."""

import itertools
import re
import unicodedata
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from prompt_tuning_jax.errors import short
from prompt_tuning_jax.quantization import full_matrix

FAR = 3.0  # a prompt's norm may be so many times larger or smaller than the embeddings'
WINDOW = 20  # losses in each of the two means that are compared
PATIENCE = 50  # steps after the warm-up in which a loss should have moved
STILL = 0.01  # the share of the loss that counts as a move
ONE_SIDED = 0.95  # the share of answers that may be the same
PAIRS = 3  # of labels, in one sentence


@jax.jit
def _mean_norm(vectors):
    if isinstance(vectors, Mapping):  # in int8: floats inside of this program alone
        vectors = full_matrix(vectors, vectors["q"].shape)
    return jnp.linalg.norm(vectors.astype(jnp.float32), axis=-1).mean()


def prompt_norm(vectors, embedding) -> str:
    """Warns of virtual tokens `[P, D]` far longer or shorter than the embeddings `[V, D]`."""
    virtual, known = float(_mean_norm(vectors)), float(_mean_norm(embedding))
    turn = "lower" if virtual > known else "raise"
    norms = f"a norm of {virtual:.2g} on average and the model's embeddings {known:.2g}"
    advice = f"{turn} learning_rate, or start from embeddings (method.init)"
    fits = known / FAR <= virtual <= known * FAR
    return "" if fits else f"the virtual tokens have {norms}: {advice}"


def loss_not_moving(first: Sequence[float], last: Sequence[float], step: int) -> str:
    """Warns of a loss whose mean has not fallen from its first values to those up to `step`."""
    before, after = float(np.mean(first)), float(np.mean(last))
    found = f"after {step} steps the loss has not moved, from {before:.3f} to {after:.3f}"
    advice = "raise learning_rate, or look at what the model reads with --dry_run"
    return f"{found}: {advice}" if after > (1 - STILL) * before else ""


def unread_init(settings, tokenizer, labels) -> str:
    """Warns of a start for virtual tokens that is not read, or does not fit them."""
    if not {"init", "init_text", "init_file", "num_virtual_tokens"} <= {*settings}:
        return ""
    for init in ("text", "file"):
        if settings[f"init_{init}"] and settings.init != init:
            return (
                f"method.init_{init} is ignored, as method.init is {settings.init!r}: set "
                f"method.init to {init!r} to use it"
            )
    wanted = settings.num_virtual_tokens
    if settings.init == "labels" and len(labels) > wanted:
        return f"{len(labels) - wanted} of the {len(labels)} labels have no virtual token"
    if settings.init != "text":
        return ""
    found = len(tokenizer.encode(settings.init_text)[0])
    change = "cut" if found > wanted else "repeated"
    fault = f"method.init_text has {found} tokens and is {change} to the {wanted} virtual tokens"
    return fault if found != wanted else ""


def odd_settings(config) -> list[str]:
    """Warns of settings of a run that cannot do what they are for."""
    steps, warmup, patience = config.steps, config.schedule.warmup_steps, config.early_stopping
    validations = -(-steps // (config.evaluate_every or steps))
    found = {
        f"early_stopping is {patience} and the run has {validations} validations, too few to end "
        "it early: lower early_stopping or evaluate_every": patience >= max(validations - 1, 1),
        f"schedule.warmup_steps is {warmup} and the run has {steps} steps, so the rate never "
        "reaches learning_rate: lower schedule.warmup_steps": warmup >= steps,
        f"learning_rate is {config.learning_rate:g}: above 1 training seldom works": (
            config.learning_rate > 1
        ),
        "best_by is 'accuracy' and a target has none, so the loss decides: leave it out": (
            config.best_by == "accuracy" and bool(config.task.target)
        ),
    }
    return [sentence for sentence, is_so in found.items() if is_so]


def other_task(
    manifest: Mapping, template: str, labels: Sequence[tuple[str, str]], max_length: int
) -> list[str]:
    """Warns of a config that differs from the artifact's."""
    own = [tuple(pair) for pair in manifest["labels"]]
    found = {
        f"the artifact's own template is read, {short(manifest['template'], 80)}, and not the "
        f"config's, {short(template, 80)}": manifest["template"] != template,
        f"the artifact's own max_length is read, {manifest['max_length']}, and not the config's, "
        f"{max_length}": manifest["max_length"] != max_length,
        f"the config's labels are used, {short(list(labels), 80)}, but the artifact was trained "
        f"for {short(own, 80)}: leave task.labels empty to use those": own and own != list(labels),
    }
    return [sentence for sentence, is_so in found.items() if is_so]


def trained_on(
    rows: Sequence[Mapping[str, str]],
    trained: Sequence[Mapping[str, str]],
    fields: Sequence[str],
    split: str,
    use: str = "are trained on",
) -> str:
    """Warns of records of a split with the input, the texts of `fields`, of one of `trained`."""
    known = {tuple(row.get(field) for field in fields) for row in trained}
    count = sum(tuple(row[field] for field in fields) in known for row in rows)
    found = f"{count} of {len(rows)} records of {split} {use} too, with the same input"
    advice = "so they say little about new ones: remove them from one of the splits"
    return f"{found}, {advice}" if count else ""


def empty_texts(rows: Sequence[Mapping[str, str]], fields: Sequence[str], split: str) -> str:
    """Warns of records without text in a field."""
    counts = {field: sum(not row[field].strip() for row in rows) for field in fields}
    found = " and ".join(f"{count} of {field!r}" for field, count in counts.items() if count)
    return found and (
        f"{split} has {len(rows)} records, and empty texts: {found}; remove or complete these"
    )


def repeated(batch_size: int, examples: int) -> str:
    """Warns of updates with more examples than there are."""
    found = f"batch_size is {batch_size} and there are {examples} training examples"
    advice = "so each update reads some of them more than once: lower batch_size"
    return f"{found}, {advice}" if batch_size > examples else ""


def other_devices(before: int, now: int) -> str:
    """Warns of a run that goes on with another number of devices."""
    found = (
        f"the run was saved with devices: {before}, and goes on with devices: {now}; sums are "
        "added in another order, so it will not end bit for bit like one that was never stopped"
    )
    return found if before != now else ""


def one_answer(chosen: np.ndarray, answers: np.ndarray, labels: Sequence[tuple[str, str]]) -> str:
    """Warns of int[N] chosen labels that are nearly all the same, unless the right ones are too."""
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


def same_beginning(labels: Sequence[tuple[str, str]], tails: Sequence[np.ndarray]) -> list[str]:
    """Warns of labels whose words begin with the same tokens, given the tokens of each word."""
    whole, first = [], []
    words = [(word, tail) for (_, word), tail in zip(labels, tails, strict=False)]
    for pair in itertools.combinations(words, 2):
        (word, tail), (longer, other) = sorted(pair, key=lambda one: len(one[1]))
        if np.array_equal(other[: len(tail)], tail):
            whole.append(f"{word!r} in {longer!r}")
        elif tail[0] == other[0]:
            first.append(f"{pair[0][0]!r} and {pair[1][0]!r}")
    found = {
        "a label's word is the beginning of another's, which can then never be ranked above it: "
        f"{_some(whole)}; choose other words in task.labels, as 'value=word'": whole,
        "labels' words begin with the same token, which does not tell them apart: "
        f"{_some(first)}; other words in task.labels, as 'value=word', may do better": first,
    }
    return [sentence for sentence, pairs in found.items() if pairs]


def look_alike(labels: Sequence[tuple[str, str]]) -> str:
    """Warns of labels that differ only in case, white space, Unicode form or a number's form."""
    groups: dict[str, list[str]] = {}
    for value, _ in labels:
        folded = " ".join(unicodedata.normalize("NFC", value).casefold().split())
        groups.setdefault(re.sub(r"(?<=\d)\.0+$", "", folded), []).append(repr(value))
    alike = _some([" and ".join(group) for group in groups.values() if len(group) > 1])
    return alike and (
        "labels that look alike (case, white space, Unicode form, or 1 and 1.0) are different: "
        f"{alike}; write each in one way in the data"
    )


def _some(pairs: Sequence[str]) -> str:
    more = f" and {len(pairs) - PAIRS} more" if len(pairs) > PAIRS else ""
    return ", ".join(pairs[:PAIRS]) + more
