"""Batches: examples packed into rows, the few shapes of a run, and the order of its examples.

The examples of a causal language model begin with the same tokens, so a batch holds that front
once, and its rows hold the rest. Several short examples share a row, and segments keep them apart.
The answers of an example share its trunk, and branches keep them apart.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from prompt_tuning_jax.data.example import Example

# The length of a row whose attention costs as much as the rest of the layer, measured on a CPU,
# where attention costs more than its share of the multiplications.
_ATTENTION_LENGTH = 600
_SAMPLE = 256  # batches that the number of rows is chosen by
_CANDIDATES = 16  # numbers of rows that are compared

Array = Any  # of numpy or jax, or its sharding


class Shape(NamedTuple):
    """The sizes of a batch's arrays: R rows of T positions, Q reads and M targets."""

    rows: int
    length: int
    reads: int
    targets: int


class Batch(NamedTuple):
    """The input of a step, int32 unless stated otherwise. No index reaches into another row."""

    shared: Array  # [S], the front that is the same for all examples
    tokens: Array  # [R, T]
    positions: Array  # [R, T], the first after the shared ones is S
    segments: Array  # [R, T], 0 is padding, examples count from 1 within a row
    branches: Array  # [R, T], 0 is the trunk, c + 1 the tail of answer c
    reads: Array  # [R, Q], places in the row with a hidden state that is needed, each once
    targets: Array  # [R, M], the row's read that predicts the target
    target_ids: Array  # [R, M]
    target_weights: Array  # float32[R, M], 0 is padding
    target_example: Array  # [R, M], example in the batch; if ranked, example * C + answer


def shared_length(examples: Sequence[Example]) -> int:
    """Returns S, the number of front tokens that are the same in all examples. They are before
    every field and before the last token of every trunk, which predicts a target."""
    bound = min(min(example.constant, len(example.trunk) - 1) for example in examples)
    fronts = np.stack([example.trunk[:bound] for example in examples])
    same = (fronts == fronts[0]).all(axis=0)
    return int(bound if same.all() else same.argmin())


def plan_shapes(
    examples: Sequence[Example],
    batches: np.ndarray,
    shared: int,
    *,
    ranked: bool = False,
    row_multiple: int = 1,
) -> tuple[Shape, ...]:
    """Chooses the shapes of a run, the shorter first, so that every batch fits one of them: two,
    each of which is compiled once, or one if all batches are alike. `batches`, int[N, B], are the
    examples of each batch of the run. All shapes have the same number of rows, a multiple of
    `row_multiple` (devices times microbatches). The number and the lengths have the lowest cost; a
    position costs more in a longer row."""
    sizes = _sizes(examples, shared, ranked)[batches]
    sample = sizes[:: -(-len(sizes) // _SAMPLE)]

    def prices(lengths: np.ndarray) -> np.ndarray:
        return lengths * (1 + (shared + lengths) / _ATTENTION_LENGTH)

    def cost(rows: int) -> float:
        return rows * _lengths(_loads(sample, rows)[..., 0].max(axis=1), prices)[1]

    # The largest candidate gives each example its own row.
    most = -(-batches.shape[1] // row_multiple)
    spaced = np.geomspace(1, most, min(most, _CANDIDATES)).round()
    rows = min((row_multiple * int(number) for number in np.unique(spaced)), key=cost)
    largest = _loads(sizes, rows).max(axis=1)
    shapes = []
    for length in _lengths(largest[:, 0], prices)[0]:
        _, reads, targets = largest[largest[:, 0] <= length].max(axis=0)
        shapes.append(Shape(rows, length, int(reads), int(targets)))
    return tuple(shapes)


def pack_batch(
    examples: Sequence[Example], shared: int, shapes: Sequence[Shape], *, ranked: bool
) -> Batch:
    """Packs the examples of one batch into the shortest of the shapes from `plan_shapes` that holds
    them: all their tails if `ranked`, or only the right one (training and its loss)."""
    sizes = _sizes(examples, shared, ranked)
    rows = assign_rows(sizes[None, :, 0], shapes[0].rows)[0]
    largest = _sums(sizes[None], rows[None], shapes[0].rows)[0].max(axis=0)
    for shape in shapes:
        if (largest <= shape[1:]).all():
            return _fill(examples, rows, shared, shape, ranked)
    raise ValueError(f"a batch with rows of {largest} positions, reads, targets fits no {shapes}")


def evaluation_shape(
    examples: Sequence[Example], shared: int, *, row_multiple: int = 1, positions: int = 1024
) -> Shape:
    """Chooses one shape of about `positions` positions for `evaluation_batches`."""
    sizes = _sizes(examples, shared, True)
    lengths = sizes[:, 0]
    # Rows of about three times the longest example pack well, and their attention is cheap. All
    # have the same number of examples: one more in some rows would be padding in all others.
    each = min(max(round(3 * lengths.max() / lengths.mean()), 1), len(examples))
    needed = -(-len(examples) // each)
    batches = -(-int(lengths.sum()) // positions)
    rows = -(-needed // (batches * row_multiple)) * row_multiple
    batches = -(-needed // rows)
    return Shape(rows, *map(int, _loads(sizes[None], batches * rows)[0].max(axis=0)))


def stream_shape(examples: Sequence[Example], before: Shape | None, row_multiple: int) -> Shape:
    """Chooses a shape for `evaluation_batches` of a part of a stream: that of the part before if it
    fits. All sizes are powers of two, so that streams have few shapes, and the same ones."""
    shared = shared_length(examples)
    if before is not None and (_sizes(examples, shared, True) <= before[1:]).all():
        return before
    shape = evaluation_shape(examples, shared, row_multiple=row_multiple)
    multiples = shape._replace(rows=shape.rows // row_multiple)
    rows, *sizes = (1 << (size - 1).bit_length() for size in multiples)
    return Shape(rows * row_multiple, *sizes)


def evaluation_batches(
    examples: Sequence[Example], shared: int, shape: Shape
) -> Iterator[tuple[Batch, np.ndarray]]:
    """Packs every example, with all its tails, into exactly one of a few batches of one shape.
    Their order does not matter, so they are spread over rows of equal load: that leaves less
    padding. With each batch comes int[b], the index in `examples` of each of its examples."""
    sizes = _sizes(examples, shared, True)
    if (sizes > shape[1:]).any():
        raise ValueError(f"an example of {sizes.max(axis=0)} positions, reads, targets > {shape}")
    batches = int((-(-sizes.sum(axis=0) // (shape.rows * np.array(shape[1:])))).max())
    while True:
        rows = assign_rows(sizes[None, :, 0], batches * shape.rows)[0]
        if (_sums(sizes[None], rows[None], batches * shape.rows) <= shape[1:]).all():
            break
        batches += 1
    for number in range(batches):
        chosen = np.flatnonzero(rows // shape.rows == number)
        if chosen.size:
            inside = [examples[index] for index in chosen.tolist()]
            yield _fill(inside, rows[chosen] % shape.rows, shared, shape, True), chosen


def make_order(number_of_examples: int, seed: int) -> Any:
    """Returns the endless order of a run: item i is the index of the i-th example that is read.
    Each epoch has its own random order. A run that goes on needs only the step."""
    import grain  # which takes a second

    return grain.MapDataset.range(number_of_examples).seed(seed).shuffle().repeat()


def batch_indices(order: Any, step: int, batch_size: int) -> np.ndarray:
    """Returns int64[B], the examples of update `step`, counted from 0."""
    start = step * batch_size
    return np.array([order[place] for place in range(start, start + batch_size)], np.int64)


def assign_rows(lengths: np.ndarray, rows: int) -> np.ndarray:
    """Returns int64[N, B], the rows of the examples of N batches, whose positions are `lengths`.
    The longest comes first, and each goes to the least loaded row, of at most ceil(B / rows)
    examples: short answers then leave no padding in reads and targets."""
    batches, size = lengths.shape
    capacity = -(-size // rows)
    every = np.arange(batches)
    loads, counts = np.zeros((2, batches, rows), np.int64)
    chosen = np.zeros((batches, size), np.int64)
    for example in np.argsort(-lengths, axis=1, kind="stable").T:
        row = loads.argmin(axis=1)
        chosen[every, example] = row
        loads[every, row] += lengths[every, example]
        counts[every, row] += 1
        # A full row is never chosen again.
        loads[every, row] += np.where(counts[every, row] == capacity, 2**40, 0)
    return chosen


def _sizes(examples: Sequence[Example], shared: int, ranked: bool) -> np.ndarray:
    """Returns int64[n, 3]: the positions, reads and targets of each example in a row."""
    sizes = np.zeros((len(examples), 3), np.int64)
    for number, example in enumerate(examples):
        tails = [len(example.tails[c]) for c in _packed(example, ranked)]
        fed = sum(tails) - len(tails)
        sizes[number] = len(example.trunk) - shared + fed, 1 + fed, sum(tails)
    return sizes


def _packed(example: Example, ranked: bool) -> Sequence[int]:
    """Returns the answers of an example that are packed: all, or only the right one."""
    return range(len(example.tails)) if ranked else (example.answer,)


def _loads(sizes: np.ndarray, rows: int) -> np.ndarray:
    return _sums(sizes, assign_rows(sizes[..., 0], rows), rows)


def _sums(sizes: np.ndarray, chosen: np.ndarray, rows: int) -> np.ndarray:
    """Sums int[N, B, 3] over the chosen rows int[N, B]; returns int64[N, R, 3]."""
    sums = np.zeros((len(sizes), rows, 3), np.int64)
    np.add.at(sums, (np.arange(len(sizes))[:, None], chosen), sizes)
    return sums


def _lengths(
    loads: np.ndarray, prices: Callable[[np.ndarray], np.ndarray]
) -> tuple[list[int], float]:
    """Returns one or two ascending lengths that hold all loads at the lowest sum of prices."""
    values, counts = np.unique(loads, return_counts=True)
    held, price = counts.cumsum(), prices(values)
    # Loads up to a value take that as their length, and all others the longest.
    costs = held * price + (len(loads) - held) * price[-1]
    shorter = costs.argmin()
    return sorted({int(values[shorter]), int(values[-1])}), float(costs[shorter])


def _fill(
    examples: Sequence[Example], rows: np.ndarray, shared: int, shape: Shape, ranked: bool
) -> Batch:
    """Writes each example into its row, in the given order."""
    batch = empty_batch(examples[0].trunk[:shared], shape)
    place = np.zeros((shape.rows, 4), np.int64)  # next position, read, target; segments so far
    for number, (example, row) in enumerate(zip(examples, rows, strict=True)):
        place[row, 3] += 1
        _put(batch, row, place[row], example.trunk[shared:], shared, 0)
        predicts = place[row, 1]
        batch.reads[row, predicts] = place[row, 0] - 1
        place[row, 1] += 1
        for c in _packed(example, ranked):
            tail = example.tails[c]
            fed, count = len(tail) - 1, len(tail)
            _, read, target, _ = place[row]
            batch.reads[row, read : read + fed] = place[row, 0] + np.arange(fed)
            _put(batch, row, place[row], tail[:-1], len(example.trunk), c + 1)
            here = (row, slice(target, target + count))
            batch.targets[here] = [predicts, *range(read, read + fed)]
            batch.target_ids[here] = tail
            batch.target_weights[here] = 1.0
            batch.target_example[here] = number * len(example.tails) + c if ranked else number
            place[row, 1:3] += fed, count
    return batch


def _put(
    batch: Batch, row: int, place: np.ndarray, tokens: np.ndarray, position: int, branch: int
) -> None:
    here = (row, slice(place[0], place[0] + len(tokens)))
    batch.tokens[here] = tokens
    batch.positions[here] = position + np.arange(len(tokens))
    batch.segments[here] = place[3]
    batch.branches[here] = branch
    place[0] += len(tokens)


def behind_front(batch: Batch) -> Batch:
    """Returns a batch for a model that has the shared positions as a prefix already."""
    positions = np.maximum(batch.positions - len(batch.shared), 0)
    return batch._replace(shared=batch.shared[:0], positions=positions)


def empty_batch(shared: np.ndarray, shape: Shape) -> Batch:
    """Returns a batch of padding."""
    # Four arrays by positions, one by reads, four by targets, as in `Batch`.
    sizes = [shape.length] * 4 + [shape.reads] + [shape.targets] * 4
    batch = Batch(shared, *(np.zeros((shape.rows, size), np.int32) for size in sizes))
    return batch._replace(target_weights=batch.target_weights.astype(np.float32))
