"""Generation: the text that the model writes after each example, a batch at a time.

The shared positions are computed once and come back to the model as a prefix. Of the examples' own,
one example a row, keys and values are kept. Then each step adds a token to every row, on the
device, until all have ended. A text does not depend on the rest of its batch.
"""

import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prompt_tuning_jax.config.key import Key, convert, faults, strings, whole
from prompt_tuning_jax.data.batch import shared_length
from prompt_tuning_jax.data.example import Example
from prompt_tuning_jax.errors import UserError
from prompt_tuning_jax.models.cached import bake, decode, prefill, split_layers
from prompt_tuning_jax.models.decoder import Decoder
from prompt_tuning_jax.models.language_model import LanguageModel
from prompt_tuning_jax.models.sites import Given, bind, prefix_length
from prompt_tuning_jax.score import not_finite
from prompt_tuning_jax.sharding import fetch

UNREADABLE = "\ufffd"  # stands for the first bytes of a character that is cut
LEAST_LENGTH = 16  # positions of the shortest rows
STEPS_AT_ONCE = 8  # on the device, before the texts are searched for stop strings


class Settings(NamedTuple):
    """How texts are written, the section `generation` of a config."""

    max_new_tokens: int = 64  # the most tokens of a text
    temperature: float = 0.0  # tokens are drawn at this temperature; 0 takes the likeliest
    top_k: int = 0  # draw from so many of the likeliest tokens; 0 is all
    top_p: float = 1.0  # draw from the fewest of the likeliest with this share of the probability
    stop: tuple[str, ...] = ()  # strings that end a text, and are left out of it
    batch_size: int = 16  # texts that are written at once


DEFAULTS = Settings()


def _of_draws(key: Key) -> Key:
    return key.if_fits(
        "config.generation.temperature above 0 beside it, because 0 takes the likeliest token",
        lambda value, settings: value == key.default or settings["temperature"] > 0,
    )


KEYS = {
    "max_new_tokens": whole(DEFAULTS.max_new_tokens, 1),
    "temperature": Key(
        DEFAULTS.temperature,
        "0, or a number of at least 0.001",
        lambda value: value == 0 or 0.001 <= value < math.inf,
    ),
    "top_k": _of_draws(whole(DEFAULTS.top_k)),
    "top_p": _of_draws(
        Key(DEFAULTS.top_p, "a number above 0 and at most 1", lambda value: 0 < value <= 1)
    ),
    "stop": strings(),
    "batch_size": whole(DEFAULTS.batch_size, 1),
}


def check_settings(settings: Settings, seed: int) -> None:
    """Raises a UserError for settings or a seed that a config could not have."""
    if not isinstance(settings, Settings):
        raise UserError(f"generation is a {type(settings).__name__}: give generate.Settings")
    given = {name: convert(value, KEYS[name]) for name, value in settings._asdict().items()}
    if found := faults(KEYS, given, "generation."):
        raise UserError(found[0])
    if not 0 <= seed < 1 << 32:
        raise UserError(f"seed is {seed}: expected a whole number from 0 to {(1 << 32) - 1}")


class Generation(NamedTuple):
    """What the model wrote."""

    text: str  # without the space that joins it to the prompt, up to a stop string
    ids: list[int]  # as the model chose them, the end-of-text token too
    finished: bool  # false if it was cut: at the most new tokens or the last position


class Front(NamedTuple):
    """What all rows of a batch share: the tokens int32[S], what the model is given, with the keys
    and values of these tokens as a prefix, and the layers for decoding."""

    tokens: np.ndarray
    given: Given
    layers: Any


class Rows(NamedTuple):
    """A batch, one example a row: int32[R, T] as in a `data.batch.Batch`, and int32[R] the number
    of the example, which its random draws depend on, and how many tokens may follow."""

    tokens: Any
    positions: Any
    segments: Any
    numbers: Any
    limits: Any


class Written(NamedTuple):
    """What a step changes: int32[] steps so far, int32[R, N] ids, int32[R] how many of them count,
    bool[R] whether the row has ended, and the model's cache."""

    steps: Any
    ids: Any
    counts: Any
    ended: Any
    cache: Any


class Rule(NamedTuple):
    """How the next token is chosen, as arrays, so that no number is compiled in."""

    seed: Any
    temperature: Any
    top_k: Any
    top_p: Any
    ends: Any  # int32[E], the ids that end a text


def generate(
    lm: LanguageModel,
    examples: Iterable[Example],
    given: Given,
    settings: Settings = DEFAULTS,
    seed: int = 0,
) -> Iterator[Generation]:
    """Yields the text that the model writes after the trunk of each example, in order.

    Args:
      examples: read as texts are asked for, `settings.batch_size` at once.
      given: what a method's `adapt` returned, or Given() for the model alone.
      seed: of the draws if `settings.temperature` is not 0. They depend on it and on the number of
        the example alone.

    Raises:
      UserError: an example leaves no position for a token.
      RunError: the model's scores are not finite.
    """
    waiting, first, front = iter(examples), 0, None
    settings, ends = find_ends(lm, settings)
    most = min(settings.top_k, lm.spec.vocabulary)
    rule = Rule(np.uint32(seed), settings.temperature, most, settings.top_p, ends)
    while batch := list(islice(waiting, settings.batch_size)):
        shared = batch[0].trunk[: shared_length(batch)]
        if front is None or not np.array_equal(front.tokens, shared):
            front = prepare_front(lm, shared, given)
        rows = pack_rows(lm, batch, front, settings, first)
        yield from write_rows(lm, rows, front, settings, rule)[: len(batch)]
        first += len(batch)


def find_ends(lm: LanguageModel, settings: Settings) -> tuple[Settings, np.ndarray]:
    """Returns the settings without stop strings that are special tokens, and int32[E] ids that end
    a text: the tokenizer's, and those of these special tokens. Raises a UserError for a stop string
    with a special token among other text: texts are searched without special tokens."""
    specials = lm.tokenizer.specials
    stop = tuple(text for text in settings.stop if text not in specials)
    for text in stop:
        if inside := [markup for markup in specials if markup in text]:
            raise UserError(
                f"generation.stop has {text!r}, in which {inside[0]!r} is a special token: give it "
                "as a stop string of its own"
            )
    named = [specials[text] for text in settings.stop if text in specials]
    return settings._replace(stop=stop), np.array([*lm.tokenizer.end_ids, *named], np.int32)


def prepare_front(lm: LanguageModel, shared: np.ndarray, given: Given) -> Front:
    """Computes the shared positions and splits the layers, for all batches that begin alike."""
    baked = bake(lm, shared, given)
    return Front(shared, baked, split_layers(lm.module, bind(lm.spec, lm.params, baked)))


def pack_rows(
    lm: LanguageModel, batch: Sequence[Example], front: Front, settings: Settings, first: int
) -> Rows:
    """Puts the rest of each trunk into a row; `first` is the number of the first example. Numbers
    of rows and positions are rounded up, so that few shapes are compiled."""
    texts = [example.trunk[len(front.tokens) :] for example in batch]
    lengths = np.array([len(text) for text in texts])
    taken = prefix_length(front.given)
    room = lm.spec.max_positions - taken
    if lengths.max() > room:
        raise UserError(
            f"an example takes {taken + lengths.max()} positions and the model has "
            f"{lm.spec.max_positions}: shorten it, or set task.max_length"
        )
    height = 1
    while height < len(batch):
        height = min(4 * height, settings.batch_size)
    tokens = np.zeros((height, min(round_up(int(lengths.max())), room)), np.int32)
    positions, segments = np.zeros_like(tokens), np.zeros_like(tokens)
    for row, text in enumerate(texts):
        tokens[row, : len(text)] = text
        positions[row, : len(text)] = np.arange(len(text))
        segments[row, : len(text)] = 1
    limits = np.zeros(height, np.int32)
    # The last token of a text takes no position: nothing follows it.
    limits[: len(batch)] = np.minimum(room - lengths + 1, settings.max_new_tokens)
    numbers = first + np.arange(height, dtype=np.int32)
    return Rows(tokens, positions, segments, numbers, limits)


def round_up(length: int) -> int:
    """Returns the next power of two, or three quarters of it; at least 16."""
    power = max(1 << (length - 1).bit_length(), LEAST_LENGTH)
    return 3 * power // 4 if LEAST_LENGTH < length <= 3 * power // 4 else power


def write_rows(
    lm: LanguageModel, rows: Rows, front: Front, settings: Settings, rule: Rule
) -> list[Generation]:
    """Returns a generation for each row; those of padding are empty."""
    most = settings.max_new_tokens
    size = round_up(rows.tokens.shape[1] + most)
    written = _begin(lm.module, size, most, lm.params, front.given, rows, rule)
    steps = 1
    while True:
        ended, counts, all_ids = map(fetch, (written.ended, written.counts, written.ids))
        ids = [row[:count].tolist() for row, count in zip(all_ids, counts, strict=True)]
        if any(number < 0 for row in ids for number in row):
            raise not_finite(lm)
        if settings.stop and not ended.all():
            ended |= [read_text(lm, row, settings.stop)[1] for row in ids]
            written = written._replace(ended=ended)
        if ended.all() or steps == most:
            return [read_generation(lm, row, settings.stop, rule.ends) for row in ids]
        steps = min(steps + STEPS_AT_ONCE, most) if settings.stop else most
        written = _go_on(lm.module, lm.params, front, rows, rule, written, steps)


def read_text(lm: LanguageModel, ids: Sequence[int], stop: Sequence[str]) -> tuple[str, bool]:
    """Returns the text of ids up to the first stop string, and whether there was one, without
    special tokens and the space that joins it to the prompt."""
    special = lm.tokenizer.special_ids.union(lm.tokenizer.end_ids)
    text = lm.tokenizer.decode([number for number in ids if number not in special])
    text = text.removeprefix(" ")
    places = [place for place in (text.find(end) for end in stop) if place >= 0]
    return (text[: min(places)], True) if places else (text, False)


def read_generation(lm: LanguageModel, ids: list[int], stop: Sequence[str], ends) -> Generation:
    """Returns the generation of a row's ids."""
    text, stopped = read_text(lm, ids, stop)
    if stopped:
        # The device wrote on until the text was searched.
        ids = next(ids[:n] for n in range(1, len(ids) + 1) if read_text(lm, ids[:n], stop)[1])
    finished = stopped or (bool(ids) and ids[-1] in ends)
    return Generation(text if finished else text.rstrip(UNREADABLE), ids, finished)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _begin(module: Decoder, size: int, most: int, params, given: Given, rows: Rows, rule: Rule):
    """Computes the examples' own positions, and the first token of each row."""
    variables = bind(module.spec, params, given)
    logits, cache = prefill(module, variables, rows.tokens, rows.positions, rows.segments, size)
    height = len(rows.tokens)
    steps, ids, counts = (jnp.zeros(shape, jnp.int32) for shape in ((), (height, most), height))
    return _append(Written(steps, ids, counts, rows.limits <= 0, cache), logits, rows, rule)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=5)
def _go_on(module: Decoder, params, front: Front, rows: Rows, rule: Rule, written: Written, until):
    """Adds tokens until `until` steps are done or every row has ended."""
    variables = bind(module.spec, params, front.given)
    length, size = rows.tokens.shape[1], written.cache[0]["v"].shape[2]
    fed = jnp.pad(rows.segments > 0, ((0, 0), (0, size - length)))
    behind = rows.segments.sum(axis=1) - 1

    def step(written: Written):
        last = jax.lax.dynamic_index_in_dim(written.ids, written.steps - 1, 1, keepdims=False)
        place, columns = length + written.steps - 1, jnp.arange(size)
        visible = fed | ((columns >= length) & (columns <= place))
        at = last, behind + written.steps, visible, place
        logits, cache = decode(module, variables, front.layers, written.cache, *at)
        return _append(written._replace(cache=cache), logits, rows, rule)

    return jax.lax.while_loop(
        lambda written: (written.steps < until) & ~written.ended.all(), step, written
    )


def _append(written: Written, logits, rows: Rows, rule: Rule) -> Written:
    chosen = choose(logits, rows.numbers, written.steps, rule)
    counts = written.counts + ~written.ended
    return Written(
        written.steps + 1,
        jax.lax.dynamic_update_index_in_dim(written.ids, chosen, written.steps, 1),
        counts,
        written.ended | jnp.isin(chosen, rule.ends) | (counts >= rows.limits),
        written.cache,
    )


def choose(logits, numbers, step, rule: Rule):
    """Returns the next token of each row, int32[R]: at temperature 0 the likeliest, else a draw
    that depends on the examples' numbers int32[R] and on how many tokens were written before
    (`step`). It is -1 if the logits float32[R, V] are not finite."""

    def draw():
        key = jax.random.key(rule.seed)
        keys = jax.vmap(lambda number: jax.random.fold_in(jax.random.fold_in(key, number), step))
        weights = keep_likely(jax.nn.softmax(logits / rule.temperature), rule.top_k, rule.top_p)
        return jax.vmap(jax.random.categorical)(keys(numbers), jnp.log(weights))

    def likeliest():
        # A CPU takes several times as long for `argmax`.
        places = jnp.arange(logits.shape[-1], dtype=jnp.int32)
        return jnp.where(logits == best[:, None], places, logits.shape[-1]).min(axis=-1)

    best = logits.max(axis=-1)
    chosen = jax.lax.cond(rule.temperature > 0, draw, likeliest)
    return jnp.where(jnp.isfinite(best), chosen.astype(jnp.int32), -1)


def keep_likely(probabilities, top_k, top_p):
    """Sets the probabilities float32[R, V] of tokens that cannot be drawn to 0. The `top_k` highest
    stay (0: all), and of these the fewest of the highest that have the share `top_p` of their sum
    (Holtzman et al. 2020), with tokens as likely as the last of these."""

    def keep():
        # Their bits have the same order, and a CPU sorts them in a quarter of the time.
        bits = jnp.sort(jax.lax.bitcast_convert_type(probabilities, jnp.int32), axis=-1)
        ranked = jax.lax.bitcast_convert_type(bits, jnp.float32)[:, ::-1]
        among = jnp.where((top_k == 0) | (jnp.arange(ranked.shape[-1]) < top_k), ranked, 0.0)
        before = jnp.cumsum(among, axis=-1) - among  # the share of those that are likelier
        stays = (among > 0) & (before < top_p * among.sum(axis=-1, keepdims=True))
        lowest = jnp.where(stays, ranked, jnp.inf).min(axis=-1, keepdims=True)
        return jnp.where(probabilities >= lowest, probabilities, 0.0)

    return jax.lax.cond((top_k > 0) | (top_p < 1), keep, lambda: probabilities)
