import heapq
import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompt_tuning_jax.data.batch import (
    Batch,
    Shape,
    assign_rows,
    batch_indices,
    evaluation_batches,
    evaluation_shape,
    make_order,
    pack_batch,
    plan_shapes,
    shared_length,
)
from prompt_tuning_jax.data.encode import encode_examples
from prompt_tuning_jax.data.example import Example
from prompt_tuning_jax.data.task import make_task, select_records


@st.composite
def example_lists(draw, most=12):
    """Returns examples with a common front of at least S tokens, and S."""
    shared = draw(st.integers(0, 4))
    answers = draw(st.integers(1, 3))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    longest_trunk, longest_tail = draw(st.integers(1, 12)), draw(st.integers(1, 4))
    examples = []
    for _ in range(draw(st.integers(1, most))):
        trunk = [-1 - j for j in range(shared)]
        trunk += random.integers(3, 99, random.integers(1, longest_trunk + 1)).tolist()
        tails = tuple(
            random.integers(3, 99, random.integers(1, longest_tail + 1)).astype(np.int32)
            for _ in range(answers)
        )
        answer = int(random.integers(answers))
        examples.append(Example(np.array(trunk, np.int32), tails, answer, shared, 0))
    return examples, shared


def sizes(example, shared, ranked):
    tails = example.tails if ranked else (example.tails[example.answer],)
    fed = sum(len(tail) - 1 for tail in tails)
    return len(example.trunk) - shared + fed, 1 + fed, sum(map(len, tails))


def unpack(batch: Batch, answers: int, ranked: bool):
    """Returns {example: (front and trunk, {answer: tail})} as a model reads the arrays."""
    assert all(array.dtype == np.int32 for array in batch if array is not batch.target_weights)
    assert batch.target_weights.dtype == np.float32
    found = {}
    for row in range(len(batch.tokens)):
        tokens, positions, segments, branches, reads, targets, ids, weights, numbers = (
            array[row] for array in batch[1:]
        )
        used = []
        for target in range(len(targets)):
            if not weights[target]:
                assert targets[target] == ids[target] == numbers[target] == 0
                continue
            place = reads[targets[target]]
            used.append(targets[target])
            number, answer = (
                divmod(int(numbers[target]), answers) if ranked else (numbers[target], 0)
            )
            segment, branch = segments[place], branches[place]
            assert segment > 0
            # What this place can see: the trunk and its own branch of its segment, up to itself.
            seen = (segments == segment) & ((branches == 0) | (branches == branch))
            seen &= np.arange(len(tokens)) <= place
            front = [*batch.shared, *tokens[seen]]
            assert [*range(len(front))] == [*range(len(batch.shared)), *positions[seen]]
            if branch and ranked:
                assert branch == answer + 1
            trunk = [*batch.shared, *tokens[(segments == segment) & (branches == 0)]]
            tail = front[len(trunk) :]
            entry = found.setdefault(int(number), (trunk, {}))
            assert entry[0] == trunk
            # The tokens before this target in its tail are what has been predicted so far.
            assert entry[1].setdefault(answer, []) == tail
            entry[1][answer].append(ids[target])
        assert len(set(reads[: max(used, default=-1) + 1])) == max(used, default=-1) + 1
        assert set(used) == set(range(max(used, default=-1) + 1))
        padding = segments == 0
        assert not tokens[padding].any()
        assert not positions[padding].any()
        assert sorted(set(segments[~padding])) == [*range(1, segments.max() + 1)]
    return found


def assert_holds(found, examples, ranked):
    assert sorted(found) == [*range(len(examples))]
    for number, example in enumerate(examples):
        trunk, tails = found[number]
        assert trunk == example.trunk.tolist()
        expected = example.tails if ranked else (example.tails[example.answer],)
        assert tails == {c: tail.tolist() for c, tail in enumerate(expected)}


@given(example_lists(), st.booleans(), st.sampled_from([1, 2, 3, 8]))
def test_packed_rows_hold_exactly_each_examples_trunk_and_tails(drawn, ranked, row_multiple):
    examples, shared = drawn
    batches = np.arange(len(examples))[None]
    shapes = plan_shapes(examples, batches, shared, ranked=ranked, row_multiple=row_multiple)
    batch = pack_batch(examples, shared, shapes, ranked=ranked)
    assert batch.shared.tolist() == examples[0].trunk[:shared].tolist()
    assert batch.tokens.shape == shapes[0][:2]
    found = unpack(batch, len(examples[0].tails), ranked)
    assert_holds(found, examples, ranked)
    # Only positions that are read are fed, so never the last token of a tail.
    real = sum(sizes(example, shared, ranked)[0] for example in examples)
    assert (batch.segments > 0).sum() == real
    if not ranked:
        gold = [batch.branches[batch.branches > 0].tolist()]
        assert set(*gold) <= {example.answer + 1 for example in examples}


@given(example_lists(), st.integers(0, 5))
def test_shared_length_is_the_longest_common_front_before_fields_and_targets(drawn, constant):
    examples, _ = drawn
    examples = [example._replace(constant=constant + n % 2) for n, example in enumerate(examples)]
    shared = shared_length(examples)
    trunks = [example.trunk.tolist() for example in examples]

    def allowed(length):
        return (
            all(trunk[:length] == trunks[0][:length] for trunk in trunks)
            and all(length <= example.constant for example in examples)
            and all(length <= len(trunk) - 1 for trunk in trunks)
        )

    assert allowed(shared)
    assert not allowed(shared + 1)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=20), st.integers(1, 24))
def test_the_longest_goes_first_to_the_least_loaded_row_that_is_not_full(lengths, rows):
    capacity = -(-len(lengths) // rows)
    open_rows = [(0, row) for row in range(rows)]
    counts, expected = Counter(), {}
    for example in sorted(range(len(lengths)), key=lambda e: -lengths[e]):
        load, row = heapq.heappop(open_rows)
        expected[example] = row
        counts[row] += 1
        if counts[row] < capacity:
            heapq.heappush(open_rows, (load + lengths[example], row))
    several = np.array([lengths[::-1], lengths, lengths])
    assert assign_rows(several, rows)[1].tolist() == [expected[e] for e in range(len(lengths))]


@given(example_lists(most=10), st.booleans(), st.sampled_from([1, 2, 4]), st.integers(0, 2**32 - 1))
def test_every_batch_of_a_plan_fits_and_no_other_plan_is_cheaper(drawn, ranked, row_multiple, seed):
    examples, shared = drawn
    size = min(len(examples), 6)
    batches = np.random.default_rng(seed).integers(0, len(examples), (5, size))
    shapes = plan_shapes(examples, batches, shared, ranked=ranked, row_multiple=row_multiple)
    assert 1 <= len(shapes) <= 2
    assert [*shapes] == sorted(set(shapes))
    most = -(-size // row_multiple) * row_multiple
    cost = 0.0
    for batch in batches:
        packed = pack_batch([examples[i] for i in batch], shared, shapes, ranked=ranked)
        cost += price(*packed.tokens.shape, shared)
        assert packed.tokens.shape in [shape[:2] for shape in shapes]
    assert len({shape.rows for shape in shapes}) == 1
    assert shapes[0].rows % row_multiple == 0
    assert shapes[0].rows <= most
    least = min(
        best_price(examples, batches, shared, ranked, rows)
        for rows in range(row_multiple, most + 1, row_multiple)
    )
    assert cost == pytest.approx(least)
    # No shape has room that no batch needs.
    longest = [Counter(), Counter(), Counter()]
    for batch in batches:
        packed = pack_batch([examples[i] for i in batch], shared, shapes, ranked=ranked)
        places = (packed.segments > 0).sum(axis=1).max()
        targets = (packed.target_weights > 0).sum(axis=1).max()
        reads = packed.targets.max() + 1
        for counter, count in zip(longest, (places, reads, targets), strict=True):
            counter[int(count)] += 1
    assert [max(counter) for counter in longest] == [*shapes[-1][1:]]


def price(rows, length, shared):
    return rows * length * (1 + (shared + length) / 600)


def best_price(examples, batches, shared, ranked, rows):
    """Returns the least price over every choice of one or two lengths."""
    lengths = np.array(
        [[sizes(examples[i], shared, ranked)[0] for i in batch] for batch in batches]
    )
    loads = []
    for batch, chosen in zip(lengths, assign_rows(lengths, rows), strict=True):
        loads.append(np.bincount(chosen, batch, rows).max().astype(int))
    least = np.inf
    for count in (1, 2):
        for choice in itertools.combinations(sorted(set(loads)), count):
            if choice[-1] >= max(loads):
                fitted = [min(length for length in choice if length >= load) for load in loads]
                least = min(least, sum(price(rows, length, shared) for length in fitted))
    return least


@given(example_lists(most=40), st.sampled_from([1, 2, 8]), st.integers(1, 200))
def test_evaluation_holds_every_example_exactly_once_in_one_shape(drawn, row_multiple, positions):
    examples, shared = drawn
    arguments = {"row_multiple": row_multiple, "positions": positions}
    planned = evaluation_shape(examples, shared, **arguments)
    assert planned.rows % row_multiple == 0
    # A shape that was planned for other examples also works.
    for shape in (planned, Shape(row_multiple, 40, 16, 16)):
        seen = []
        for batch, chosen in evaluation_batches(examples, shared, shape):
            assert batch.tokens.shape == shape[:2]
            assert batch.reads.shape == (shape.rows, shape.reads)
            assert batch.targets.shape == (shape.rows, shape.targets)
            found = unpack(batch, len(examples[0].tails), True)
            assert_holds(found, [examples[i] for i in chosen], True)
            seen += chosen.tolist()
        assert sorted(seen) == [*range(len(examples))]


def simple(length, answer=0):
    return Example(np.arange(length, dtype=np.int32), (np.array([5], np.int32),), answer, 0, 0)


def test_examples_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="fits no"):
        pack_batch([simple(9)], 0, [Shape(1, 8, 1, 1)], ranked=False)
    with pytest.raises(ValueError, match="an example of"):
        next(evaluation_batches([simple(9)], 0, Shape(1, 8, 1, 1)))


@pytest.mark.parametrize("size", [1, 7, 16, 100])
def test_each_epoch_has_its_own_order_and_follows_without_a_gap(size):
    number = 37
    first = [
        batch_indices(make_order(number, 3), step, size) for step in range(-(-3 * number // size))
    ]
    assert all(batch.shape == (size,) for batch in first)
    run = np.concatenate(first)
    epochs = [run[start : start + number].tolist() for start in (0, number, 2 * number)]
    assert all(sorted(epoch) == [*range(number)] for epoch in epochs)
    assert len({*map(tuple, epochs), tuple(range(number))}) == 4
    # Access is random: a step alone is the same as in the run.
    last = len(first) - 1
    assert batch_indices(make_order(number, 3), last, size).tolist() == first[last].tolist()
    assert batch_indices(make_order(number, 4), 0, 37).tolist() != run[:37].tolist()


def filled(batches):
    batches = list(batches)
    return sum((b.segments > 0).sum() for b in batches) / sum(b.segments.size for b in batches)


def test_the_headlines_leave_little_padding(smollm2, bbc_config):
    task = make_task(bbc_config)
    records = select_records(task, "train") + select_records(task, "test")
    examples = encode_examples(
        task, records, smollm2, num_virtual_tokens=16, add_bos=False, max_length=2048
    )
    shared = shared_length(examples)
    assert shared == 16 + len(smollm2.encode("Headline:")[0])
    train, test = examples[:1296], examples[1296:]
    sequence = make_order(len(train), 0)
    batches = np.stack([batch_indices(sequence, step, 16) for step in range(300)])
    shapes = plan_shapes(train, batches, shared)
    packed = [
        pack_batch([train[i] for i in batch], shared, shapes, ranked=False) for batch in batches
    ]
    shape = evaluation_shape(test, shared)
    evaluated = [batch for batch, _ in evaluation_batches(test, shared, shape)]
    assert filled(packed) >= 0.9
    assert filled(evaluated) >= 0.95
    assert all(batch.target_weights.all() for batch in packed)
