"""Scores: the log-probability of every answer of every example, and metrics made of them.

The shared positions are computed once and come back to the model as a prefix. The answers of an
example share its text, and examples are packed. The scores are those of each answer alone.
"""

import bisect
import functools
import sys
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import PartitionSpec

from prompt_tuning_jax.data import batch as batching
from prompt_tuning_jax.data.demonstrations import KEY
from prompt_tuning_jax.data.encode import encode_examples
from prompt_tuning_jax.data.records import PLACE
from prompt_tuning_jax.errors import RunError, UserError
from prompt_tuning_jax.memory import device_bytes, free_bytes
from prompt_tuning_jax.models.cached import bake
from prompt_tuning_jax.models.decoder import Decoder
from prompt_tuning_jax.models.language_model import LanguageModel
from prompt_tuning_jax.models.sites import NOTHING, Given, bind, prefix_length, virtual_tokens
from prompt_tuning_jax.run.progress import with_progress
from prompt_tuning_jax.sharding import AXES, Layout, fetch, make_mesh, place
from prompt_tuning_jax.step import row_specs, target_scores

ANY_LENGTH = sys.maxsize  # examples of any length


def encode_for(lm: LanguageModel, task, rows, given, max_length=0, demonstrations=(), room=0):
    """Returns records as examples with the model's tokenizer and BOS. An example has at most
    `max_length` positions without its demonstrations (0: no limit of its own), and at most `room`
    with them, by default the model's positions less those of a prefix. `ANY_LENGTH` is no limit.
    The other arguments are those of `encode_examples`."""
    taken = prefix_length(given)
    room = room or lm.spec.max_positions - taken
    if room < 1:
        problem = f"the prefix takes {taken} positions and the model has {lm.spec.max_positions}"
        raise UserError(f"{problem}: train one with fewer method.num_virtual_tokens.")
    if demonstrations and 0 < max_length < room:
        one = functools.partial(encode_for, lm, task, rows[:1], given, ANY_LENGTH)
        max_length += len(one(demonstrations)[0].trunk) - len(one()[0].trunk)
    return encode_examples(
        task,
        rows,
        lm.tokenizer,
        num_virtual_tokens=virtual_tokens(given),
        add_bos=lm.tokenizer.add_bos,
        max_length=max_length if max_length == ANY_LENGTH else min(max_length or room, room),
        demonstrations=demonstrations,
    )


def fitting(lm, task, rows, shown, log, max_length=0, room=0, key=KEY):
    """Returns as many of the first demonstrations `shown`, at least one, as fit in front of each of
    `rows`, the records of all splits that are compared. `max_length` and `room` are those of
    `encode_for`; an error names the setting `key`. The text in front changes a record's first
    tokens, so that another may be the longest then: the 64 longest are tried."""

    def needed(rows, shown):
        examples = encode_for(lm, task, rows, NOTHING, max_length, shown, ANY_LENGTH)
        return [len(each.trunk) + max(map(len, each.tails), default=1) - 1 for each in examples]

    most, alone = room or lm.spec.max_positions, needed(rows, ())
    tried = [rows[n] for n in sorted(range(len(rows)), key=alone.__getitem__)[-64:]]
    counts = range(1, len(shown) + 1)
    count = bisect.bisect_right(counts, most, key=lambda count: max(needed(tried, shown[:count])))
    if shown and not count:
        place = tried[-1].get(PLACE, f"record {rows.index(tried[-1])}")
        raise UserError(
            f"none of {len(shown)} demonstrations fits in front of {place}, which takes"
            f" {max(alone)} of {most} positions itself: give config.task.max_length to cut long"
            f" records, or leave demonstrations (config.{key}) out"
        )
    if count < len(shown):
        why = "with more, the longest example takes more positions than the model has"
        log(f"warning: {count} of {len(shown)} demonstrations are used: {why}")
    return shown[:count]


def spread(lm: LanguageModel, given: Given, devices=None):
    """Places the model and what is given on the mesh that `score` runs on, so that `score` does not
    copy them again. Returns both and the mesh. The arguments are those of `score`."""
    devices = devices or (jax.devices() if lm.layout.shards > 1 else jax.local_devices())
    model, mesh = (lm.params, given), make_mesh(devices, lm.layout.shards)
    params, given = place(model, mesh, lm.layout.specs(model))
    return lm._replace(params=params), given, mesh


def score(
    lm: LanguageModel,
    examples,
    given: Given,
    devices=None,
    shape: batching.Shape | None = None,
    log: Callable | None = None,
) -> np.ndarray:
    """Returns float32[N, C] nats, the log-probability of each answer of each example, in order.

    Args:
      examples: `data.example.Example`s, all with the same number of answers C.
      given: what a method's `adapt` returned, or Given() for the model alone.
      devices: to spread the rows over; by default those of this process, or of all if the weights
        lie in parts. Then all processes score the same examples together.
      shape: of the batches, from `batching.stream_shape`; by default the best for these examples.
      log: takes a line of text if scoring takes long.

    Raises:
      UserError: the answers of an example, which share a row, take more than the free memory.
    """
    lm, given, mesh = spread(lm, given, devices)
    answers = len(examples[0].tails)
    shared = batching.shared_length(examples)
    front = bake(lm, np.asarray(examples[0].trunk[:shared]), given)
    # Placed once, not again for each batch.
    front = place(front, mesh, lm.layout.specs(front))
    compiled = _compile(lm.module, mesh, lm.layout)
    scores = np.zeros((len(examples), answers), np.float32)
    shape = shape or batching.evaluation_shape(examples, shared, row_multiple=mesh.size)
    _check_memory(lm, shape, device_bytes() * mesh.size or free_bytes())
    parts = batching.evaluation_batches(examples, shared, shape)
    if log is not None:
        parts = with_progress(
            parts, "examples scored", log, len(examples), lambda part: len(part[1])
        )
    for batch, index in parts:
        rows = place(batching.behind_front(batch), mesh, row_specs())
        values = fetch(compiled(lm.params, front, rows))
        # The score of a tail is the sum over its tokens, in float32.
        flat = np.zeros(len(index) * answers, np.float32)
        np.add.at(flat, batch.target_example.ravel(), (values * batch.target_weights).ravel())
        scores[index] = flat.reshape(-1, answers)
    return scores


def finite(lm: LanguageModel, scores: np.ndarray) -> np.ndarray:
    """Returns scores, or refuses them if some are not finite: one would still be the best."""
    if not np.isfinite(scores).all():
        raise not_finite(lm)
    return scores


def not_finite(lm: LanguageModel) -> RunError:
    """Returns the error for a model whose scores are not numbers."""
    dtype, advice = lm.dtype, "check the model and the artifact"
    if dtype != np.float32:
        advice = "give --config.model.dtype=float32"
    return RunError(f"the model's scores are not finite, with weights in {dtype}: {advice}.")


def _check_memory(lm: LanguageModel, shape: batching.Shape, most: int) -> None:
    """Refuses rows whose attention takes more than `most` bytes."""
    # float32: a mask, and twice the weights of the queries that share a key head.
    matrices = 1 + 2 * lm.spec.heads // lm.spec.kv_heads
    needed = 4 * matrices * shape.rows * shape.length**2
    if needed > most:
        raise UserError(
            f"an example with all its answers takes {shape.length:,} positions, for which"
            f" {needed / 1e9:,.1f} GB of memory are needed and {most / 1e9:,.1f} GB are free: lower"
            " config.task.max_length, give fewer or shorter labels, or a machine with more"
        )


@functools.cache
def _compile(module: Decoder, mesh, layout: Layout):
    def scores(params, given: Given, batch: batching.Batch):
        return target_scores(module, bind(module.spec, params, given), batch)[0]

    def mapped(params, given, batch):
        specs = layout.specs(params), layout.specs(given), row_specs()
        how = {"mesh": mesh, "in_specs": specs, "out_specs": PartitionSpec(AXES)}
        return jax.shard_map(scores, **how, check_vma=False)(params, given, batch)

    return jax.jit(mapped)


def loss_and_accuracy(scores: np.ndarray, answers: np.ndarray) -> dict[str, float]:
    """Compares float32[N, C] scores with int[N] right answers. Returns `loss`, the mean negative
    log-likelihood of the right answers in nats; `accuracy`, the share of examples whose best answer
    is the right one, if there are several answers; and `examples`, N."""
    if unknown := int((answers < 0).sum()):
        raise UserError(f"{unknown} of {len(answers)} records have no label: give them one")
    right = scores[np.arange(len(answers)), answers]
    found = {"loss": float(-right.mean())}
    if scores.shape[1] > 1:
        found["accuracy"] = float((scores.argmax(1) == answers).mean())
    return {**found, "examples": len(answers)}
